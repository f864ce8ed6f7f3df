"""LoRA and experts in exchanges between devices: simulated, over gRPC, and without D2D."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clients.resident import all_profiles
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from hffm_flower.ledger import LinkClass, Transfer
from hffm_flower.lora import Scaling, is_lora, product, rank_of
from hffm_flower.modules import ModularState, ModuleKind
from hffm_flower.records import modules_of, read_state, to_bytes
from hffm_flower.session.preflight import check
from tests.support.exchange import updates_of
from tests.support.kinds import KINDS
from tests.support.live import Live
from tests.support.outcomes import farthest
from tests.support.played import Played, play

RELAYED = {
    "lora-exact": {**KINDS["lora-exact"], "d2d__summing": False},
    "lora-ffa": KINDS["lora-ffa"],
    "lora-alternate": KINDS["lora-alternate"],
    "experts": KINDS["experts"],
}


@pytest.fixture
def eight(tiny: RunConfig) -> RunConfig:
    return tiny.with_values(
        tree__devices=8, tree__edges=2, tree__period=1, rounds=2, train__local_steps=3,
        radio__links="nearest", server__deadline_s=60.0, data__test_per_answer=4,
    )  # fmt: skip


def kept_edges(run: Played) -> list[ModularState]:
    assert run.error is None
    return [read_state(run.files.edge(index)) for index in (0, 1)]


def peer_rows(run: Played) -> list[Transfer]:
    return [r for rows in run.files.transfers().values() for r in rows if r.link is LinkClass.D2D]


def densely(state: ModularState) -> ModularState:
    """LoRA modules as their products, which are what counts; the others as they are."""
    return {
        k: {n: a.astype(np.float32) for n, a in product(s, Scaling.STANDARD).items()}
        if is_lora(s) and {n.rpartition(".lora_")[2][0] for n in s} == {"A", "B"}
        else s
        for k, s in state.items()
    }


@pytest.mark.parametrize("kind", RELAYED)
def test_over_grpc_it_is_the_simulation_to_the_bit(
    eight: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    config = eight.with_values(**RELAYED[kind], d2d__plan="relay")
    check(config)
    want = play(config, tmp_path / "simulated")
    with Live(monkeypatch) as runs:
        there = config.with_values(paths__state=str(tmp_path / "live-state"))
        got = runs.play(there, tmp_path / "live")
    assert got.error is None
    assert [r.dropped for r in got.rounds] == [{}, {}]
    assert [to_bytes(s) for s in kept_edges(got)] == [to_bytes(s) for s in kept_edges(want)]
    assert to_bytes(got.files.cloud()) == to_bytes(want.files.cloud())
    assert [r.lora_bound for r in got.rounds] == [r.lora_bound for r in want.rounds]
    assert peer_rows(want)
    assert peer_rows(got) == peer_rows(want)


@pytest.mark.parametrize("kind", RELAYED)
def test_relaying_is_averaging_without_d2d(eight: RunConfig, tmp_path: Path, kind: str) -> None:
    """One round: in later ones the training between grows what rounding leaves."""
    once = eight.with_values(**RELAYED[kind], rounds=1, radio__links="tree")
    plain = play(once.with_values(d2d__summing=True), tmp_path / "plain")
    relayed = play(once.with_values(d2d__plan="relay"), tmp_path / "relayed")
    assert {d: to_bytes(u.state) for d, u in updates_of(relayed, 1).items()} == {
        d: to_bytes(u.state) for d, u in updates_of(plain, 1).items()
    }
    pairs = zip([*kept_edges(plain), plain.files.cloud()],
                [*kept_edges(relayed), relayed.files.cloud()], strict=True)  # fmt: skip
    for one, other in pairs:
        assert farthest(densely(one), densely(other)) <= 1e-6
    assert relayed.rounds[0].devices == plain.rounds[0].devices
    assert peer_rows(relayed)


def test_forwarded_ranks_differ_and_each_device_trains_at_its_own(
    eight: RunConfig, tmp_path: Path
) -> None:
    config = eight.with_values(**RELAYED["lora-exact"], d2d__plan="relay", rounds=3)
    run = play(config, tmp_path / "out")
    assert run.error is None
    ranks = {p.index: p.rank for p in all_profiles(config)}
    for call in run.app.of("train"):
        back = [rank_of(s) for s in modules_of(call.reply.content).values() if is_lora(s)]
        assert set(back) == {ranks[call.index]}
    edges = [state for edge in kept_edges(run) for state in edge.values() if is_lora(state)]
    assert max(map(rank_of, edges)) > max(ranks.values())


def test_bytes_between_peers_are_those_of_the_experts_that_they_hold(
    eight: RunConfig, tmp_path: Path
) -> None:
    config = eight.with_values(**KINDS["experts"], d2d__plan="relay", rounds=2)
    run = play(config, tmp_path / "out")
    sizes = {
        str(k): sum(a.nbytes for a in s.values())
        for c in run.app.of("train") for k, s in modules_of(c.question.content).items()
    }  # fmt: skip
    assert len({p.experts for p in all_profiles(config)}) > 1
    rows = peer_rows(run)
    assert any(name.startswith(ModuleKind.EXPERT) for r in rows for name in r.modules)
    for row in rows:
        assert row.bytes == sum(sizes[name] for name in row.modules)
    held = {p.index: {f"expert/{j}" for j in p.experts} for p in all_profiles(config)}
    trained = {c.index: set(map(str, modules_of(c.question.content))) for c in run.app.of("train")}
    for index, names in trained.items():
        assert {n for n in names if n.startswith("expert/")} == held[index]


@pytest.mark.parametrize("plan", ["relay", "gossip", "cooperative"])
@pytest.mark.parametrize("rule", ["lora-exact", "lora-naive"])
def test_what_cannot_be_summed_is_refused(tiny: RunConfig, plan: str, rule: str) -> None:
    config = tiny.with_values(
        model__adapter="lora", model__lora_ranks=2, server__lora_rule=rule, d2d__plan=plan
    )
    with pytest.raises(ConfigError, match=rf"{rule}.*d2d.summing = false.*lora-ffa") as error:
        check(config)
    assert error.value.key == "server.lora-rule"
