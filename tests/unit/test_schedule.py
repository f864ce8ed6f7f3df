from __future__ import annotations

import pytest

from hffm_flower.errors import ConfigError
from hffm_flower.modules import ModuleKey
from hffm_flower.schedule import METHODS, Placement, Schedule, Scope

KEYS = tuple(map(ModuleKey.parse, ("adapter/1", "head/a", "head/b", "prompt/cls")))
ADAPTER, HEAD_A, HEAD_B, PROMPT = KEYS


def build(policy: str, method: str = "h-fedfm", period: int = 2, rounds: int = 12) -> Schedule:
    return Schedule.of(KEYS, method=method, policy=policy, period=period, rounds=rounds)


def test_the_example_of_the_documentation() -> None:
    schedule = build("prompt/*=edge head/a=cloud:1 adapter/*=cloud:8 head/*=device")
    assert schedule.placements == {
        ADAPTER: Placement(Scope.CLOUD, 8),
        HEAD_A: Placement(Scope.CLOUD, 1),
        HEAD_B: Placement(Scope.DEVICE),
        PROMPT: Placement(Scope.EDGE),
    }
    assert schedule.due(7) == (HEAD_A,)
    assert schedule.due(8) == (ADAPTER, HEAD_A)
    assert schedule.due(12) == (ADAPTER, HEAD_A)
    assert schedule.cycle() == 8
    assert schedule.exchanges(5) == tuple(range(1, 13))
    assert schedule.edge_evaluations(5) == tuple(range(5, 13))


def test_h_fedfm_meets_the_cloud_at_multiples_and_at_the_end() -> None:
    schedule = build("", period=8, rounds=20)
    assert schedule.exchanges(3) == (8, 16, 20)
    assert schedule.edge_evaluations(3) == tuple(range(13, 21))
    assert schedule.due(15) == ()


def test_a_period_longer_than_the_run_evaluates_all_of_it() -> None:
    schedule = build("", period=99, rounds=3)
    assert schedule.exchanges(1) == (3,)
    assert schedule.edge_evaluations(1) == (1, 2, 3)


def test_methods_without_a_cloud_report_now_and_then() -> None:
    for method in ("local", "edge-only"):
        schedule = build("", method=method, rounds=5)
        assert schedule.exchanges(2) == (2, 4, 5)
        assert schedule.edge_evaluations(2) == (2, 4, 5)
        assert not any(schedule.due(t) for t in range(1, 6))


def test_flat_and_pooled_methods() -> None:
    assert {n for n, m in METHODS.items() if m.flat} == {"star", "central"}
    assert {n for n, m in METHODS.items() if m.pooled} == {"central"}


def test_the_first_match_wins() -> None:
    assert build("head/a=edge head/*=device */a=cloud:3").placements[HEAD_A].scope == "edge"
    assert build("head/*=device head/a=edge").placements[HEAD_A].scope == "device"


def test_a_pattern_that_matches_nothing_names_the_modules() -> None:
    with pytest.raises(ConfigError) as caught:
        build("head/*=edge Head/c=edge")
    assert str(caught.value) == (
        "pattern 'Head/c' matches no module; "
        "modules of this run: adapter/1, head/a, head/b, prompt/cls"
    )


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("head/*=cloud:0", "period '0' in 'cloud:0'"),
        ("head/*=cloud:-1", "period '-1'"),
        ("head/*=fog", "place 'fog'"),
        ("head/*=edge:3", "place 'edge:3'"),
        ("head/*", "'head/\\*' is not of the form pattern=place"),
    ],
)
def test_a_policy_that_is_wrong_is_refused(policy: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        build(policy)
    assert caught.value.key == "server.modules"
