"""Looking into exchanges between devices: the plans, who counted, and what should come of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hffm_flower.d2d import Plan
from hffm_flower.modules import ModularState, ModularUpdate, ModuleKey, merge
from hffm_flower.records import update_of
from hffm_flower.report import RoundReport
from strategies.edge import EdgeStrategy
from strategies.modular import Behind, Gathered
from strategies.planner import PeerPlanner
from tests.support.played import Played

PLANS = ("relay", "gossip", "cooperative")
ROUNDING = 3e-6
"""Of a float32 mean of means, relative to the largest parameter."""


@dataclass(frozen=True)
class Counted:
    """What an edge gathered in one edge round, and what it published then."""

    edge: int
    t: int
    behind: Behind
    refused: Mapping[int, str]
    modules: ModularState


def watch_counts(monkeypatch: pytest.MonkeyPatch) -> list[Counted]:
    """Every edge round from now on, as it is published."""
    seen: list[Counted] = []
    learn = EdgeStrategy.learn

    def spy(self: EdgeStrategy, got: Gathered, report: RoundReport) -> None:
        learn(self, got, report)
        behind = {key: dict(who) for key, who in got.behind.items()}
        seen.append(Counted(self.index, report.t, behind, dict(got.refused), dict(self.modules)))

    monkeypatch.setattr(EdgeStrategy, "learn", spy)
    return seen


def watch_plans(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Plan]]:
    """Edge round -> every plan that is made for it from now on, edge by edge."""
    made: dict[int, list[Plan]] = {}
    plan = PeerPlanner.plan

    def spy(
        self: PeerPlanner,
        t: int,
        holds: Mapping[int, tuple[ModuleKey, ...]],
        sizes: Mapping[ModuleKey, int],
    ) -> Plan:
        found = plan(self, t, holds, sizes)
        made.setdefault(t, []).append(found)
        return found

    monkeypatch.setattr(PeerPlanner, "plan", spy)
    return made


def updates_of(run: Played, t: int) -> dict[int, ModularUpdate]:
    """Device -> its update of edge round ``t``; of training in segments, of the last one."""
    return {
        c.index: update_of(c.reply.content)
        for c in run.app.of("train")
        if c.t == t and c.reply.has_content()
    }


def behind_of(updates: Mapping[int, ModularUpdate]) -> Behind:
    """Module -> device -> mass, every update counted once."""
    behind: Behind = {}
    for device, update in sorted(updates.items()):
        for key, mass in update.mass.items():
            behind.setdefault(key, {})[device] = mass
    return behind


def merged(behind: Behind, updates: Mapping[int, ModularUpdate]) -> ModularUpdate:
    """The flat merge of exactly those updates that are in ``behind``."""
    return merge(
        updates[device].only(key for key, who in behind.items() if device in who)
        for device in sorted(updates)
    )


def flat(state: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    """All values of a module as one vector."""
    return np.concatenate([state[n].astype(np.float64).ravel() for n in sorted(state)])


def check_near(
    found: ModularState,
    behind: Behind,
    updates: Mapping[int, ModularUpdate],
    *,
    accuracy: float = 0.0,
) -> None:
    """``found`` is the merge of those in ``behind``, up to rounding and what gossip may leave.

    Gossip brings every device within ``accuracy`` of the mean of what it averages; that are
    here the masses n, and n (theta - mean), whose mean is 0.
    """
    exact = merged(behind, updates)
    assert exact.state.keys() <= found.keys()
    largest = max(float(np.abs(flat(s)).max()) for s in exact.state.values())
    for key, who in behind.items():
        mean = flat(exact.state[key])
        n = np.array([who[d] for d in sorted(who)])
        apart = np.stack([flat(updates[d].state[key]) - mean for d in sorted(who)]) * n[:, None]
        spread_n = float(np.linalg.norm(n - n.mean()))
        left = accuracy * float(np.linalg.norm(apart)) / (n.mean() - accuracy * spread_n)
        error = float(np.linalg.norm(flat(found[key]) - mean))
        assert error <= left + ROUNDING * largest * np.sqrt(len(mean)), key


def coordinates(
    path: Path,
    devices: Sequence[tuple[float, float, int]],
    edges: Iterable[tuple[float, float]],
) -> Path:
    """Write a file of coordinates: devices (x, y, cluster) and edges (x, y) [m]."""
    rows = [f"device,{x},{y},{cluster}" for x, y, cluster in devices]
    rows += [f"edge,{x},{y}," for x, y in edges]
    path.write_text("\n".join(["kind,x_m,y_m,cluster", *rows, ""]), encoding="utf-8")
    return path
