"""Methods of a comparison by name, and names that are none."""

from __future__ import annotations

import pytest

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from hffm_flower.session.entries import DEFAULT, entries

BASE = RunConfig().with_values(rounds=24, tree__devices=8, tree__edges=2, seed=77)


@pytest.mark.parametrize(
    ("name", "method", "period", "plan"),
    [
        ("local", "local", 1, "none"),
        ("star", "star", 1, "none"),
        ("central", "central", 1, "none"),
        ("edge-only", "edge-only", 1, "none"),
        ("edge-only+d2d", "edge-only", 1, "relay"),
        ("edge-only+gossip", "edge-only", 1, "gossip"),
        ("h-fedfm-e1", "h-fedfm", 1, "none"),
        ("h-fedfm-e2", "h-fedfm", 2, "none"),
        ("h-fedfm-e8+d2d", "h-fedfm", 8, "relay"),
        ("h-fedfm-e12+relay", "h-fedfm", 12, "relay"),
        ("h-fedfm-e24+cooperative", "h-fedfm", 24, "cooperative"),
    ],
)
def test_a_name_is_a_method_a_period_and_a_plan(
    name: str, method: str, period: int, plan: str
) -> None:
    (entry,) = entries(BASE, [name], [5])
    assert entry.name == name
    found = entry.config
    assert (found.method, found.tree.period, found.d2d.plan) == (method, period, plan)
    # All else is in common.
    same = BASE.with_values(method=method, tree__period=period, d2d__plan=plan, seed=5)
    assert found == same


def test_the_default_is_the_papers_comparison() -> None:
    found = entries(BASE, DEFAULT, [1])
    assert [e.name for e in found] == [
        "local", "star", "edge-only", "edge-only+d2d", "h-fedfm-e2", "h-fedfm-e2+d2d",
        "h-fedfm-e8", "h-fedfm-e8+d2d", "central",
    ]  # fmt: skip
    assert len({e.config for e in found}) == len(DEFAULT)


def test_every_method_runs_with_every_seed() -> None:
    found = entries(BASE, ["star", "edge-only"], range(1, 4))
    assert [(e.config.seed, e.name) for e in found] == [
        (seed, name) for seed in (1, 2, 3) for name in ("star", "edge-only")
    ]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "no method to compare"),
        (["fedavg"], r"'fedavg' is unknown; allowed is a method \(local, star, edge-only"),
        (["Star"], "'Star' is unknown"),
        (["star-e2"], "'star-e2' is unknown"),
        (["h-fedfm"], "does not say its period; e.g. h-fedfm-e2"),
        (["h-fedfm+d2d"], "does not say its period"),
        (["h-fedfm-e0"], "'h-fedfm-e0' is unknown"),
        (["h-fedfm-e"], "'h-fedfm-e' is unknown"),
        (["h-fedfm-e2-e2"], "'h-fedfm-e2-e2' is unknown"),
        (["edge-only+"], "unknown D2D plan of 'edge-only"),
        (["edge-only+none"], "unknown D2D plan of 'edge-only"),
        (["edge-only+relai"], "did you mean 'relay'"),
        (["edge-only+relay+gossip"], "unknown D2D plan"),
        (["star", "edge-only", "star"], "methods star are named twice"),
        (["h-fedfm-e5"], r"24 edge rounds are no multiple of the period 5 of 'h-fedfm-e5'"),
        (["star", "h-fedfm-e48"], "no multiple of the period 48"),
        (["star+d2d"], "needs clusters that average"),
        (["local+gossip"], "needs clusters that average"),
        (["central+d2d"], "needs clusters that average"),
    ],
)
def test_names_that_are_none(names: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        entries(BASE, names, [1])


def test_a_bad_name_is_found_behind_good_ones() -> None:
    with pytest.raises(ConfigError, match="'stra' is unknown"):
        entries(BASE, ["star", "h-fedfm-e2", "stra"], [1, 2])
