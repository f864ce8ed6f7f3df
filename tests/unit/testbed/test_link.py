"""One direction of a link: rate, delay, losses, queue, cut, and changes on the way."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hffm_flower.errors import ConfigError
from hffm_flower.seeding import generator
from hffm_flower.testbed.link import LEAST_QUEUE_BYTES, Pipe, Quality

MBIT = 1e6


def pipe(quality: Quality, seed: int = 1) -> Pipe:
    return Pipe(quality, generator(seed, "test"))


def packet(number: int, size: int = 1250) -> bytes:
    return number.to_bytes(4, "big") + bytes(size - 4)


def numbers(arrived: list[tuple[float, bytes]]) -> list[int]:
    return [int.from_bytes(p[:4], "big") for _, p in arrived]


def test_packets_leave_one_after_another_at_the_rate() -> None:
    link = pipe(Quality(1 * MBIT, delay_s=0.05))
    for number in range(3):
        link.push(10.0, packet(number))
    assert link.due_s == pytest.approx(10.06)
    assert link.pull(10.0599) == []
    arrived = link.pull(11.0)
    assert [at for at, _ in arrived] == pytest.approx([10.06, 10.07, 10.08])
    assert numbers(arrived) == [0, 1, 2]
    assert link.due_s == math.inf
    assert link.counters.delivered_bytes == 3 * 1250


def test_without_a_rate_only_the_delay_is_left() -> None:
    link = pipe(Quality(delay_s=0.2))
    link.push(1.0, packet(0))
    assert link.pull(1.2)[0][0] == pytest.approx(1.2)


def test_a_full_queue_drops_what_comes_last() -> None:
    link = pipe(Quality(1 * MBIT))
    fits = LEAST_QUEUE_BYTES // 1250
    for number in range(fits + 10):
        link.push(0.0, packet(number))
    assert link.counters.dropped == 10
    assert numbers(link.pull(60.0)) == list(range(fits))


def test_the_queue_grows_with_rate_and_round_trip() -> None:
    assert Quality(100 * MBIT).queue_bytes == pytest.approx(100 * MBIT / 8 * 0.2)
    assert Quality(100 * MBIT, 0.1).queue_bytes == pytest.approx(100 * MBIT / 8 * 0.4)
    assert Quality(1000.0).queue_bytes == LEAST_QUEUE_BYTES


def test_a_cut_link_takes_nothing_and_what_waits_goes_on() -> None:
    link = pipe(Quality(1 * MBIT))
    link.push(0.0, packet(0))
    link.change(0.0, Quality(1 * MBIT, cut=True))
    link.push(0.0, packet(1))
    assert numbers(link.pull(1.0)) == [0]
    assert link.counters.cut == 1


def test_what_waits_leaves_by_the_new_rate() -> None:
    link = pipe(Quality(0.01 * MBIT))
    for number in range(5):
        link.push(0.0, packet(number))
    assert link.due_s == pytest.approx(1.0)
    link.change(1.5, Quality(1 * MBIT))  # packet 1 is half sent
    late = link.pull(2.0)
    assert numbers(late) == list(range(5))
    assert [at for at, _ in late] == pytest.approx([1.0, 1.505, 1.515, 1.525, 1.535])


def test_a_link_of_rate_0_holds_what_waits() -> None:
    link = pipe(Quality(0.0))
    link.push(0.0, packet(0))
    assert link.due_s == math.inf
    link.change(5.0, Quality(1 * MBIT))
    assert link.due_s == pytest.approx(5.01)
    assert numbers(link.pull(6.0)) == [0]


def test_what_is_on_the_air_goes_on_over_changes() -> None:
    link = pipe(Quality(0.01 * MBIT))
    link.push(0.0, packet(0))
    link.change(0.25, Quality(0.0))
    assert link.due_s == math.inf
    link.change(10.0, Quality(0.02 * MBIT))
    link.change(10.25, Quality(1 * MBIT))  # three quarters are sent
    assert [at for at, _ in link.pull(11.0)] == pytest.approx([10.2525])


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_losses_are_within_six_sigma(share: float) -> None:
    link, many = pipe(Quality(loss=share), seed=7), 20_000
    for number in range(many):
        link.push(0.0, packet(number, 20))
        link.pull(0.0)
    assert abs(link.counters.lost - many * share) < 6 * math.sqrt(many * share * (1 - share))


def test_a_lost_packet_has_had_its_time_on_the_link() -> None:
    link = pipe(Quality(1 * MBIT, loss=1.0))
    link.push(0.0, packet(0))
    link.push(0.0, packet(1))
    link.change(0.005, Quality(1 * MBIT))
    assert [at for at, _ in link.pull(1.0)] == pytest.approx([0.01, 0.02])
    lossy = pipe(Quality(1 * MBIT, loss=1.0))
    lossy.push(0.0, packet(0))
    lossy.pull(0.01)
    lossy.change(0.01, Quality(1 * MBIT))
    lossy.push(0.0, packet(1))
    assert [at for at, _ in lossy.pull(1.0)] == pytest.approx([0.02])


def test_equal_seeds_lose_the_same_packets() -> None:
    def arrived(seed: int) -> list[int]:
        link = pipe(Quality(loss=0.5), seed)
        for number in range(50):
            link.push(0.0, packet(number, 20))
        return numbers(link.pull(0.0))

    assert arrived(3) == arrived(3)
    assert arrived(3) != arrived(4)


@pytest.mark.parametrize(
    "words",
    [{"rate_bit_s": -1.0}, {"rate_bit_s": math.nan}, {"delay_s": -1.0}, {"delay_s": math.inf},
     {"jitter_s": math.inf}, {"loss": 1.5}, {"loss": math.nan}],
)  # fmt: skip
def test_links_that_cannot_be(words: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(words)).partition('_')[0]}"):
        Quality(**words)  # type: ignore[arg-type]


qualities = st.builds(
    Quality, st.floats(1e3, 1e9), st.floats(0, 1), st.floats(0, 0.1), st.floats(0, 1), st.booleans()
)
steps = st.lists(
    st.tuples(st.floats(0, 0.5), st.integers(20, 1500), st.none() | qualities), max_size=60
)


@settings(max_examples=100)
@given(qualities, steps, st.integers(0, 9))
def test_whatever_happens_packets_come_in_order_once_and_none_early(
    first: Quality, happening: list[tuple[float, int, Quality | None]], seed: int
) -> None:
    link, now, seen = pipe(first, seed), 0.0, []
    pushed: dict[int, float] = {}
    for number, (wait_s, size, changed) in enumerate(happening):
        now += wait_s
        if changed is not None:
            link.change(now, changed)
        pushed[number] = now
        link.push(now, packet(number, size))
        before, came = link.due_s, link.pull(now)
        assert (before <= now) or not came
        seen += came
    seen += link.pull(math.inf)
    assert all(a < b for a, b in pairwise(numbers(seen)))
    assert all(a <= b for (a, _), (b, _) in pairwise(seen))
    assert all(at >= pushed[number] for (at, _), number in zip(seen, numbers(seen), strict=True))
    counted = link.counters
    assert (
        len(seen) + counted.lost + counted.dropped + counted.cut == counted.packets == len(pushed)
    )
    assert counted.delivered_bytes == sum(len(p) for _, p in seen)


@settings(max_examples=30)
@given(st.floats(1e5, 1e8), st.integers(100, 1500))
def test_a_busy_link_carries_its_rate(rate: float, size: int) -> None:
    link, now, bits = pipe(Quality(rate)), 0.0, 0
    period = 8 * size / rate / 2  # twice what it can carry
    for number in range(2000):
        now += period
        link.push(now, packet(number, size))
        bits += 8 * sum(len(p) for _, p in link.pull(now))
    assert bits == pytest.approx(rate * now, rel=0.01)


def test_jitter_delays_by_its_standard_deviation() -> None:
    link = pipe(Quality(delay_s=0.01, jitter_s=0.002))
    waits = []
    for number in range(2000):
        link.push(float(number), packet(number, 20))
        waits.append(link.pull(number + 0.9)[0][0] - number - 0.01)
    assert min(waits) >= 0
    assert math.sqrt(float(np.mean(np.square(waits)))) == pytest.approx(0.002, rel=0.1)
