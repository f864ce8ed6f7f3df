"""Devices that fail among their peers: the round ends in time, whoever lives counts once.

The faulty device and its peers are the real ones, and what comes of it is what the simulation
of the same fault gives, to the bit where both are played by the same plan.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message

from clients import channels
from clients.peers import PeerExchange
from hffm_flower.config import RunConfig
from hffm_flower.d2d import EDGE, Fault
from hffm_flower.ledger import LinkClass
from hffm_flower.modules import ModularState
from hffm_flower.records import to_bytes
from hffm_flower.rpc import exchange_pb2 as pb
from strategies.peer_grid import PeerGrid
from tests.support.exchange import Counted, watch_counts, watch_plans
from tests.support.faulty import SPOILT, FaultyExchange, Gone, SpoilingExchange
from tests.support.live import Live
from tests.support.played import Played, RecordingApp, play
from tests.support.tiny import forget

pytestmark = pytest.mark.slow  # a minute and a half of waiting for deadlines

DEVICES = (1, 2, 3, 4, 5)
DEADLINE_S = 8.0
FAULTY = 3


@pytest.fixture
def cluster(tiny: RunConfig) -> RunConfig:
    return tiny.with_values(
        method="edge-only", rounds=1, tree__edges=1, train__local_steps=4,
        server__evaluate_every=5, server__deadline_s=DEADLINE_S, server__quorum=0.2,
        d2d__plan="relay", d2d__accuracy=0.1, radio__links="nearest",
    )  # fmt: skip


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[Counted]:
    return watch_counts(monkeypatch)


def simulated(
    config: RunConfig, out: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault | None
) -> Played:
    faults = {FAULTY: fault} if fault else {}
    with monkeypatch.context() as patch:
        grid = functools.partial(PeerGrid, faults=lambda edge, t: faults)
        patch.setattr("strategies.federation.PeerGrid", grid)
        run = play(config, out)
    assert run.error is None
    return run


def lived(
    config: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch,
    app: RecordingApp | None = None, **how: Any,
) -> Played:  # fmt: skip
    config = config.with_values(paths__state=str(folder / "live-state"))
    with Live(monkeypatch, **how) as runs:
        began = time.monotonic()
        run = runs.play(config, folder / "live", app)
        took_s = time.monotonic() - began
    assert run.error is None
    assert took_s < 2 * DEADLINE_S
    trained = [c for c in run.app.of("train") if c.reply.has_content()]
    assert all(c.reply.metadata.created_at - c.question.metadata.created_at < DEADLINE_S
               for c in trained)  # fmt: skip
    return run


def faulty(
    fault: Fault, *, phase: int = pb.UP, device: int = FAULTY
) -> Callable[..., PeerExchange]:
    def exchange(index: int, address: str, **settings: Any) -> PeerExchange:
        if index == device:
            return FaultyExchange(index, fault, settings["reactor"], address, phase)
        return PeerExchange(index, address, **settings)

    return exchange


def spoiling(name: str) -> Callable[..., PeerExchange]:
    class Spoiling(SpoilingExchange):
        spoil = staticmethod(SPOILT[name])

    return lambda index, *a, **k: (Spoiling if index == FAULTY else PeerExchange)(index, *a, **k)


def near(one: ModularState, other: ModularState) -> bool:
    return one.keys() == other.keys() and all(
        np.allclose(one[k][n], other[k][n], rtol=1e-4, atol=1e-5) for k in one for n in one[k]
    )


CASES = [
    *(("relay", f) for f in Fault if f != Fault.HEAD_DEAD),
    ("gossip", Fault.DEAD_DURING), ("gossip", Fault.SLOW), ("gossip", Fault.DUPLICATE),
]  # fmt: skip


@pytest.mark.parametrize(("plan", "fault"), CASES)
def test_a_fault_leads_where_it_leads_in_simulation(
    cluster: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: list[Counted],
    plan: str, fault: Fault,
) -> None:  # fmt: skip
    config = cluster.with_values(d2d__plan=plan)
    want = simulated(config, tmp_path / "simulated", monkeypatch, fault)
    got = lived(config, tmp_path, monkeypatch, exchange=faulty(fault))
    wanted, found = counts
    assert found.behind == wanted.behind
    assert to_bytes(found.modules) == to_bytes(wanted.modules)
    assert got.rounds[0].devices == want.rounds[0].devices
    assert got.rounds[0].dropped.keys() == want.rounds[0].dropped.keys()
    assert got.rounds[0].void == []


@pytest.mark.parametrize("name", SPOILT)
def test_what_nobody_takes_is_asked_for(
    cluster: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: list[Counted],
    name: str,
) -> None:  # fmt: skip
    want = simulated(cluster, tmp_path / "simulated", monkeypatch, Fault.SLOW)
    got = lived(cluster, tmp_path, monkeypatch, exchange=spoiling(name))
    wanted, found = counts
    assert found.behind == wanted.behind
    assert to_bytes(found.modules) == to_bytes(wanted.modules)
    assert got.rounds[0].devices == want.rounds[0].devices == list(DEVICES)
    assert got.rounds[0].dropped == {}
    assert FAULTY in {c.index for c in got.app.of("query.upload")}


@pytest.mark.parametrize("fault", [Fault.DEAD_BEFORE, Fault.SLOW])
def test_parts_of_training_go_on_without_a_peer(
    cluster: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: list[Counted],
    fault: Fault,
) -> None:  # fmt: skip
    """The simulation plays faults behind the last part only, so the bits are others."""
    config = cluster.with_values(d2d__plan="cooperative")
    simulated(config, tmp_path / "simulated", monkeypatch, fault)
    lived(config, tmp_path, monkeypatch, exchange=faulty(fault))
    wanted, found = counts
    assert found.behind == wanted.behind
    assert found.refused.keys() == wanted.refused.keys()


def test_a_head_that_dies_before_it_uploads_loses_itself_alone(
    cluster: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: list[Counted]
) -> None:
    plans = watch_plans(monkeypatch)

    class Headless(RecordingApp):
        def answer(
            self, message: Message, context: Context, *, index: int, kind: str, t: int
        ) -> Message:
            reply = super().answer(message, context, index=index, kind=kind, t=t)
            if kind == "train" and index in plans[1][0].uploads:
                raise Gone
            return reply

    run = lived(cluster, tmp_path, monkeypatch, Headless())
    (found,), ((plan,),) = counts, plans.values()
    (head,) = plan.uploads
    assert {d for who in found.behind.values() for d in who} == set(DEVICES) - {head}
    assert run.rounds[0].dropped.keys() == {str(head)}
    assert sorted({c.index for c in run.app.of("query.upload")}) == sorted({*DEVICES} - {head})


@pytest.mark.parametrize("plan", ["relay", "gossip"])
def test_who_is_brought_no_modules_is_given_them_by_the_edge(
    cluster: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: list[Counted],
    plan: str,
) -> None:  # fmt: skip
    plans = watch_plans(monkeypatch)
    config = cluster.with_values(d2d__plan=plan)
    want = simulated(config, tmp_path / "simulated", monkeypatch, None)
    giver = next(hop.src for hop in plans[1][0].down if hop.src != EDGE)
    dying = faulty(Fault.DEAD_BEFORE, phase=pb.DOWN, device=giver)
    run = lived(config, tmp_path, monkeypatch, exchange=dying)
    wanted, found = counts
    others = {
        key: {d: mass for d, mass in who.items() if d != giver}
        for key, who in wanted.behind.items()
    }
    assert found.behind == {key: who for key, who in others.items() if who}
    assert run.rounds[0].dropped.keys() == {str(giver)}
    assert run.rounds[0].trained < want.rounds[0].trained
    asked = [c.index for c in run.app.of("train")]
    assert max(asked.count(d) for d in DEVICES) == 2
    work = run.rounds[0].work
    assert {d: work[d] for d in work} == {d: want.rounds[0].work[d] for d in work}


@pytest.mark.parametrize("how", [{"unreachable": (2, 4)}, {"offline": (2, 4)}])
def test_devices_that_peers_cannot_reach_train_as_if_there_were_none(
    cluster: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: list[Counted],
    how: dict[str, Any],
) -> None:  # fmt: skip
    want = simulated(cluster, tmp_path / "simulated", monkeypatch, None)
    plans = watch_plans(monkeypatch)
    run = lived(cluster, tmp_path, monkeypatch, **how)
    wanted, found = counts
    assert found.behind == wanted.behind
    assert near(found.modules, wanted.modules)
    assert plans[1][0].members() <= {1, 3, 5}
    assert run.rounds[0].devices == want.rounds[0].devices
    assert run.rounds[0].loss_sum == pytest.approx(want.rounds[0].loss_sum)
    assert [c for c in run.app.calls if c.kind == "query.upload"] == []


def test_a_cluster_of_unreachable_devices_is_a_plain_one(
    cluster: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: list[Counted]
) -> None:
    play(cluster.with_values(d2d__plan="none"), tmp_path / "plain")
    run = lived(cluster, tmp_path, monkeypatch, unreachable=DEVICES)
    assert to_bytes(counts[1].modules) == to_bytes(counts[0].modules)
    assert not any(r.link is LinkClass.D2D for rows in run.files.transfers().values() for r in rows)


def test_a_device_restarted_before_it_is_asked_has_its_update(
    cluster: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: list[Counted]
) -> None:
    class Restarted(RecordingApp):
        def answer(
            self, message: Message, context: Context, *, index: int, kind: str, t: int
        ) -> Message:
            if kind == "query.upload":
                channels.close_channels()
                forget()
            return super().answer(message, context, index=index, kind=kind, t=t)

    simulated(cluster, tmp_path / "simulated", monkeypatch, Fault.SLOW)
    run = lived(cluster, tmp_path, monkeypatch, Restarted(), exchange=faulty(Fault.SLOW))
    wanted, found = counts
    assert run.app.of("query.upload")
    assert to_bytes(found.modules) == to_bytes(wanted.modules)
