"""An edge that is restarted in mid-run goes on with what it had, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from hffm_flower.errors import ModuleError
from hffm_flower.lora import rank_of
from hffm_flower.modules import ModularState, ModuleKey, ModuleState
from hffm_flower.records import TAILS, masses
from hffm_flower.schedule import Schedule
from strategies.edge import EdgeStrategy
from strategies.edge_state import restore_edge, save_edge, saved_keys
from strategies.grids import TRAIN_CLUSTER
from strategies.modular import Member
from strategies.rules import LoraPolicy
from tests.support.edges import NODE, Plan, play
from tests.support.lora import ADAPTER, HEAD, pair
from tests.support.memory import cluster_message
from tests.support.outcomes import bits

RANKS = (2, 3, 5)
KEYS = (ADAPTER, HEAD)
START: ModularState = {
    ADAPTER: {**pair(1, 5, 9, 12), "up.lora_B.weight": np.zeros((12, 5), np.float32)},
    HEAD: {"weight": np.ones(4, np.float32)},
}


def edge_of(most: int = 0) -> EdgeStrategy:
    members = {
        NODE + k: Member(k, KEYS, ranks={ADAPTER: rank}) for k, rank in enumerate(RANKS)
    }  # fmt: skip
    schedule = Schedule.of(KEYS, method="h-fedfm", policy="", period=4, rounds=4)
    return EdgeStrategy(
        0, members, schedule, seed=1, fraction=1.0, rule="mean", optimizer="*=mean", quorum=0.5,
        deadline_s=5.0, report_every=4, lora=LoraPolicy(most={ADAPTER: most} if most else {}),
    )  # fmt: skip


def moved(device: int, t: int, key: ModuleKey, state: ModuleState) -> ModuleState:
    """Training: another move for every (device, t, key); LoRA at the rank of the device."""
    rng = np.random.default_rng([device, t, KEYS.index(key)])
    if key == ADAPTER:
        return pair(100 * device + t, RANKS[device], 9, 12)
    return {n: a + rng.normal(size=a.shape).astype(np.float32) for n, a in state.items()}


def plan() -> Plan:
    return Plan(moved, lambda device, t, key: 3.0 + device + t)


def message(first: int, last: int, modules: ModularState | None = None) -> Message:
    return cluster_message(TRAIN_CLUSTER, first, last, modules or {})


@pytest.mark.parametrize("most", [0, 4])
def test_lora_above_the_devices_ranks_and_tails_survive(tmp_path: Path, most: int) -> None:
    edge, path = edge_of(most), tmp_path / "edge.safetensors"
    play(edge, message(1, 2, START), plan())
    save_edge(path, edge, KEYS)
    assert rank_of(edge.modules[ADAPTER]) == (most or 9)  # of up to 2 + 3 + 5
    assert (edge.tails[ADAPTER] > 0.0) == bool(most)
    again = edge_of(most)
    restore_edge(path, again)
    assert saved_keys(path) == KEYS
    assert bits(again.modules) == bits(edge.modules)
    assert (again.tails, again.t, again.versions) == (edge.tails, 2, edge.versions)
    assert again.trained == edge.trained
    # Devices get the same cut of it, and the next rounds end in the same.
    ours, theirs = plan(), plan()
    sent = [play(e, message(1, 4), p) for e, p in ((edge, ours), (again, theirs))]
    assert sent[0].mass == sent[1].mass
    assert bits(sent[0].state) == bits(sent[1].state)
    assert [(t, k) for t, k, *_ in theirs.sent] == [(t, k) for t, k, *_ in ours.sent]
    for (_, device, _, mine), (*_, other) in zip(ours.sent, theirs.sent, strict=True):
        assert bits(mine) == bits(other)
        assert rank_of(mine[ADAPTER]) <= RANKS[device]


def test_tails_reach_the_cloud_after_a_restart(tmp_path: Path) -> None:
    """Also if the edge dies when its rounds are over: it answers with what it has."""
    edge, path = edge_of(4), tmp_path / "edge.safetensors"
    play(edge, message(1, 4, START), plan())
    save_edge(path, edge, KEYS)
    again = edge_of(4)
    restore_edge(path, again)
    steps = again.cluster_round(TRAIN_CLUSTER, message(1, 4).content)
    with pytest.raises(StopIteration) as answer:
        next(steps)
    assert masses(answer.value.value, TAILS) == {ADAPTER: edge.tails[ADAPTER]}
    assert edge.tails[ADAPTER] > 0.0


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "edge.safetensors"
    path.write_bytes(b"no state")
    with pytest.raises(ModuleError, match="is no edge's state"):
        restore_edge(path, edge_of())
