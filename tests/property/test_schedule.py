"""Whatever the policy: when which module travels, against the definition in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hffm_flower.errors import ConfigError
from hffm_flower.modules import ModuleKey
from hffm_flower.schedule import METHODS, Placement, Schedule, Scope

NAMES = ("adapter/0", "adapter/1", "head/a", "head/b", "prompt/cls")
KEYS = tuple(map(ModuleKey.parse, NAMES))
PATTERNS = ("*", "adapter/*", "head/*", "*/a", "*/[01]", "prompt/cls", "head/b")
MATCHES = {
    "*": set(NAMES),
    "adapter/*": {"adapter/0", "adapter/1"},
    "head/*": {"head/a", "head/b"},
    "*/a": {"head/a"},
    "*/[01]": {"adapter/0", "adapter/1"},
    "prompt/cls": {"prompt/cls"},
    "head/b": {"head/b"},
}
PLACES = st.one_of(
    st.sampled_from(["device", "edge", "cloud"]), st.integers(1, 9).map(lambda e: f"cloud:{e}")
)
ITEMS = st.lists(st.tuples(st.sampled_from(PATTERNS), PLACES), max_size=5)
FEDERATED = st.sampled_from([n for n, m in METHODS.items() if not m.pooled])
ROUNDS = st.integers(1, 30)


def build(items: list[tuple[str, str]], method: str, period: int, rounds: int) -> Schedule:
    policy = " ".join(f"{pattern}={place}" for pattern, place in items)
    return Schedule.of(KEYS, method=method, policy=policy, period=period, rounds=rounds)


def expected(items: list[tuple[str, str]], method: str, period: int, name: str) -> str:
    default = {
        "local": "device", "star": "cloud:1", "edge-only": "edge", "h-fedfm": f"cloud:{period}"
    }[method]  # fmt: skip
    return next((place for pattern, place in items if name in MATCHES[pattern]), default)


@given(ITEMS, FEDERATED, st.integers(1, 9), ROUNDS)
def test_the_first_match_wins_and_the_method_places_the_rest(
    items: list[tuple[str, str]], method: str, period: int, rounds: int
) -> None:
    schedule = build(items, method, period, rounds)
    assert tuple(schedule.placements) == KEYS
    for key, placed in schedule.placements.items():
        scope, _, e = expected(items, method, period, str(key)).partition(":")
        assert placed == Placement(Scope(scope), int(e or 1))
    scoped = [schedule.scoped(s) for s in Scope]
    assert sorted(k for keys in scoped for k in keys) == list(KEYS)


@given(ITEMS, FEDERATED, st.integers(1, 9), ROUNDS, st.integers(1, 7))
def test_the_clock_follows_from_the_placements(
    items: list[tuple[str, str]], method: str, period: int, rounds: int, every: int
) -> None:
    schedule = build(items, method, period, rounds)
    periods = {k: p.period for k, p in schedule.placements.items() if p.scope == "cloud"}
    clock = range(1, rounds + 1)
    for t in clock:
        due = {k for k, e in periods.items() if t % e == 0 or t == rounds}
        assert schedule.due(t) == tuple(sorted(due))
    assert set(schedule.due(rounds)) == set(periods), "at T every cloud module is sent"

    exchanges = schedule.exchanges(every)
    if periods:
        assert exchanges == tuple(t for t in clock if schedule.due(t))
        assert schedule.cycle() == max(periods.values())
        cycle = range(max(1, rounds - max(periods.values()) + 1), rounds + 1)
        assert schedule.edge_evaluations(every) == tuple(cycle)
    else:
        assert exchanges == tuple(t for t in clock if t % every == 0 or t == rounds)
        assert schedule.cycle() == 1
        assert schedule.edge_evaluations(every) == exchanges
    assert exchanges[-1] == rounds
    assert list(exchanges) == sorted(set(exchanges))
    assert schedule.edge_evaluations(every)[-1] == rounds


@given(FEDERATED, st.integers(1, 9), ROUNDS)
def test_a_method_is_its_policy(method: str, period: int, rounds: int) -> None:
    by_name = build([], method, period, rounds)
    place = {"local": "device", "edge-only": "edge", "star": "cloud", "h-fedfm": f"cloud:{period}"}
    by_policy = build([("*", place[method])], "local", 1, rounds)
    assert by_name == by_policy


@given(st.text(st.characters(categories=["Ll"]), min_size=1, max_size=8), ITEMS)
def test_a_pattern_that_matches_nothing_is_refused_with_the_names(
    word: str, items: list[tuple[str, str]]
) -> None:
    with pytest.raises(ConfigError) as caught:
        build([*items, (f"zz{word}/*", "edge")], "star", 1, 3)
    assert f"'zz{word}/*' matches no module" in str(caught.value)
    assert all(name in str(caught.value) for name in NAMES)
    assert caught.value.key == "server.modules"


@given(
    st.one_of(
        st.integers(max_value=0).map(lambda e: f"cloud:{e}"),
        st.sampled_from(["", "cloud:", "cloud:x", "cloud:1.5", "cloud:+2", "cloud:²", "edge:2"]),
        st.sampled_from(["device:1", "Cloud", "server", "clouds", "1"]),
    )
)
def test_a_place_that_is_none_is_refused(place: str) -> None:
    with pytest.raises(ConfigError, match="allowed: device, edge, cloud, cloud:E") as caught:
        build([("*", place)], "star", 1, 3)
    assert repr(place.partition(":")[2] if place.startswith("cloud:") else place) in str(
        caught.value
    )
    assert caught.value.key == "server.modules"


@given(st.sampled_from(["head/*", "=edge", "edge", "="]))
def test_an_item_that_is_no_pair_is_refused(item: str) -> None:
    with pytest.raises(ConfigError, match="not of the form pattern=place"):
        Schedule.of(KEYS, method="star", policy=f"*=edge {item}", period=1, rounds=2)


@given(ROUNDS, st.integers(max_value=0))
def test_period_zero_is_no_period(rounds: int, period: int) -> None:
    with pytest.raises(ConfigError, match=f"period '{period}'"):
        build([], "h-fedfm", period, rounds)
