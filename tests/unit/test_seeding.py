from __future__ import annotations

import numpy as np

from hffm_flower.seeding import generator, stream_seed


def test_a_stream_is_the_same_on_every_machine() -> None:
    assert stream_seed(1, "partition", "watch7") == 2938109489891346620
    assert generator(1, "partition").integers(0, 1000, 3).tolist() == [638, 864, 823]


def test_every_part_of_the_name_counts() -> None:
    names: list[tuple[int, tuple[str | int, ...]]] = [
        (1, ()), (2, ()), (1, ("a",)), (1, ("a", "b")), (1, ("b", "a")), (1, ("ab",)),
        (1, ("a", 1)), (1, ("a", 11)), (1, ("a", 1, 1)), (11, ("a",)),
    ]  # fmt: skip
    seeds = [stream_seed(seed, *name) for seed, name in names]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)


def test_streams_are_independent_of_each_other() -> None:
    first = generator(1, "a")
    again = generator(1, "a")
    generator(1, "b").normal(size=10)
    np.testing.assert_array_equal(first.normal(size=5), again.normal(size=5))
    one, other = generator(1, "a").normal(size=4000), generator(1, "b").normal(size=4000)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.06
