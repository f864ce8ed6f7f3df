"""Every kind of module is trained, averaged by its rule, saved, and equals central training."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from clients.resident import all_profiles
from clients.store import DeviceStore
from hffm_flower.config import RunConfig
from hffm_flower.ledger import LinkClass, Phase
from hffm_flower.lora import is_lora, rank_of
from hffm_flower.models.parts import FACTORS, PROMPTS, Adapter
from hffm_flower.modules import ModuleKind
from hffm_flower.records import modules_of, read_state, update_of
from strategies.lora_rules import LORA_RULES
from tests.integration.test_one_device import central, single
from tests.support.kinds import KINDS
from tests.support.outcomes import bits, farthest
from tests.support.played import play

DRAWN = ("lora-exact", "experts", "dropout")
"""Kinds with draws, or with decompositions, of their own."""
RULES = {str(k.get("server__lora_rule", "lora-exact")) for k in KINDS.values()}


def test_every_rule_and_every_adapter_is_among_the_kinds() -> None:
    assert set(LORA_RULES) == set(FACTORS) == RULES
    used = {str(k.get("model__adapter", "bottleneck")) for k in KINDS.values()}
    assert used == set(get_args(Adapter))
    words = " ".join(str(k.get("model__prompts", "")) for k in KINDS.values()).split()
    assert {word.partition("=")[0] for word in words} == set(PROMPTS)


@pytest.mark.parametrize("kind", KINDS)
def test_one_device_is_central_training(tiny: RunConfig, tmp_path: Path, kind: str) -> None:
    """Method ``local`` bit for bit; in a tree, where n theta / n rounds, to 1e-6."""
    config = single(tiny, **KINDS[kind])
    if "model__lora_ranks" in KINDS[kind]:
        config = config.with_values(model__lora_ranks=3)
    config = config.with_values(model__experts_held=0)
    play(config.with_values(method="local"), tmp_path / "local")
    pooled = central(config, tmp_path / "central")
    assert bits(DeviceStore(Path(tiny.paths.state) / "1", 0).read(4)) == bits(pooled.cloud())
    tree = config.with_values(rounds=1, method="h-fedfm")
    run = play(tree, tmp_path / "tree")
    assert run.error is None
    alone = central(tree, tmp_path / "alone").cloud()
    cloud = run.files.cloud()
    left = {str(k) for k in alone.keys() - cloud.keys()}
    endings = {"lora-alternate": ".A", "lora-share-a": ".B"}  # it rests; it stays on its device
    ending = endings.get(config.server.lora_rule, "none")
    assert left == {str(k) for k in alone if str(k).endswith(ending)}
    assert farthest(cloud, {k: alone[k] for k in cloud}) <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_trains_every_kind(tiny: RunConfig, tmp_path: Path, kind: str) -> None:
    config = tiny.with_values(rounds=4, tree__period=2, **KINDS[kind])
    run = play(config, tmp_path / "out")
    assert run.error is None
    assert run.result["status"] == "finished"
    assert not any(r.dropped or r.void for r in run.rounds)
    assert run.rounds[-1].loss_sum < run.rounds[0].loss_sum
    cloud = run.files.cloud()
    assert all(np.isfinite(a).all() for state in cloud.values() for a in state.values())
    bounds = [r.lora_bound for r in run.rounds]
    mixed = any(is_lora(s) for s in cloud.values()) and LORA_RULES[config.server.lora_rule].mixed
    assert [bool(b) for b in bounds] == [False, mixed and "naive" not in kind] * 2
    if kind in DRAWN:
        again = play(config.with_values(paths__state=str(tmp_path / "again")), tmp_path / "out2")
        assert bits(again.files.cloud()) == bits(cloud)


def test_devices_have_ranks_and_the_cloud_keeps_the_highest(
    tiny: RunConfig, tmp_path: Path
) -> None:
    config = tiny.with_values(rounds=2, **KINDS["lora-exact"])
    profiles = all_profiles(config)
    assert sorted(p.rank for p in profiles) == [2, 2, 3, 3, 5, 5]
    run = play(config, tmp_path / "out")
    (key,) = (k for k in run.files.cloud() if k.kind is ModuleKind.ADAPTER)
    assert rank_of(run.files.cloud()[key]) <= 5
    edges = [read_state(run.files.edge(index)) for index in (0, 1)]
    assert max(rank_of(edge[key]) for edge in edges) > 5  # edges keep the sum of the ranks


@pytest.mark.parametrize("plan", ["none", "relay"])
def test_experts_are_lent_for_a_round(tiny: RunConfig, tmp_path: Path, plan: str) -> None:
    """A device trains its own expert and another one, which a neighbour may bring."""
    config = tiny.with_values(
        rounds=4, d2d__plan=plan, **KINDS["experts"],
    ).with_values(model__experts_held=1, model__experts_lent=1, model__expert_copies=1)  # fmt: skip
    run = play(config, tmp_path / "out")
    assert run.error is None
    assert not any(r.dropped for r in run.rounds)
    held = {p.index: {f"expert/{j}" for j in p.experts} for p in all_profiles(config)}
    assert sorted(len(h) for h in held.values()) == [0, 1, 1, 1, 1, 1]  # one device is idle
    lent: dict[int, set[str]] = {k: set() for k in held}
    for call in run.app.of("train"):
        came = {str(k) for k in modules_of(call.question.content) if k.kind is ModuleKind.EXPERT}
        assert held[call.index] <= came
        assert len(came) <= 2
        lent[call.index] |= came - held[call.index]
        assert {str(k) for k in update_of(call.reply.content).mass} >= held[call.index]
    assert any(len(other) > 1 for other in lent.values())  # drawn anew for every round
    rows = [row for some in run.files.transfers().values() for row in some]
    fetched = {
        (row.dst, name)
        for row in rows
        if row.link is LinkClass.D2D and row.phase is Phase.SHARE
        for name in row.modules
        if name.startswith("expert/") and name not in held[int(row.dst.partition("/")[2])]
    }
    assert bool(fetched) == (plan == "relay")
