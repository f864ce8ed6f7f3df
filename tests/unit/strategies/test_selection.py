from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.selection import participants


@given(st.sets(st.integers(0, 500), max_size=60), st.integers(1, 100), st.integers(1, 50))
def test_the_share_is_rounded_up_and_drawn_from_the_pool_in_order(
    pool: set[int], percent: int, t: int
) -> None:
    chosen = participants(pool, fraction=percent / 100, seed=1, t=t)
    exact = Fraction(percent, 100) * len(pool)
    assert len(chosen) == -(-exact.numerator // exact.denominator)
    assert list(chosen) == sorted(set(chosen) & pool)


@pytest.mark.parametrize(
    ("fraction", "devices", "want"),
    [(1.0, 7, 7), (0.5, 7, 4), (0.01, 7, 1), (0.28, 25, 7), (0.55, 20, 11), (0.5, 0, 0)],
)
def test_sizes(fraction: float, devices: int, want: int) -> None:
    assert len(participants(range(devices), fraction=fraction, seed=1, t=1)) == want


@given(st.sets(st.integers(0, 200), min_size=2, max_size=40), st.integers(1, 30), st.data())
def test_a_device_is_drawn_alike_whoever_else_is_there(
    pool: set[int], t: int, data: st.DataObject
) -> None:
    """Whoever beats all but k of a crowd beats all but k of any part of it."""
    part = data.draw(st.sets(st.sampled_from(sorted(pool)), min_size=1))
    k = data.draw(st.integers(1, len(part)))
    of_all = participants(pool, fraction=k / len(pool), seed=3, t=t)
    of_part = participants(part, fraction=k / len(part), seed=3, t=t)
    assert len(of_all) == len(of_part) == k
    assert set(of_all) & part <= set(of_part)


def test_order_of_the_pool_does_not_matter() -> None:
    pool = list(range(20))
    assert participants(pool, fraction=0.3, seed=1, t=2) == participants(
        reversed(pool), fraction=0.3, seed=1, t=2
    )


def test_seed_and_round_draw_anew_and_everybody_has_a_turn() -> None:
    draws = [participants(range(20), fraction=0.25, seed=s, t=t)
             for s in (1, 2) for t in range(1, 101)]  # fmt: skip
    assert draws[:100] != draws[100:]
    assert len(set(draws)) > 190
    counts = Counter(k for draw in draws for k in draw)
    assert set(counts) == set(range(20))
    assert 25 <= min(counts.values()) <= max(counts.values()) <= 80
