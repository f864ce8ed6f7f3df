"""Devices that fail in an exchange, and relays that lie: whoever lives counts exactly once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict

from hffm_flower.config import RunConfig
from hffm_flower.d2d import Fault, Parcel, Plan
from hffm_flower.payload import PARCELS, TRAINED, packed, parcels_of
from hffm_flower.records import MODULES, modules_of, modules_record
from strategies.grids import NO_ANSWER
from strategies.modular import Behind
from strategies.peer_grid import Faults, PeerGrid
from tests.support.exchange import (
    PLANS,
    behind_of,
    check_near,
    updates_of,
    watch_counts,
    watch_plans,
)
from tests.support.played import Played, RecordingApp, play

DEVICES = (1, 2, 3, 4, 5)
"""All in one cluster; device 0 has nothing to train."""
FAILING = {1: 4, 2: 5, 3: 1}
"""Edge round -> device that fails in it."""
GOSSIP_ACCURACY = 0.1
ONLY_SENDERS = (Fault.DEAD_DURING, Fault.DEAD_AFTER)
"""These happen in a device's first sending step."""


@pytest.fixture
def cluster(tiny: RunConfig) -> RunConfig:
    return tiny.with_values(
        method="edge-only", rounds=1, tree__edges=1, train__local_steps=4,
        server__evaluate_every=5, d2d__accuracy=GOSSIP_ACCURACY, radio__links="nearest",
    )  # fmt: skip


def failing(monkeypatch: pytest.MonkeyPatch, faults: Faults) -> None:
    monkeypatch.setattr(
        "strategies.federation.PeerGrid", functools.partial(PeerGrid, faults=faults)
    )


def senders(plan: Plan) -> set[int]:
    return {device for step in plan.steps for device in step.sends}


def gone(fault: Fault, device: int, plan: Plan) -> bool:
    if fault in ONLY_SENDERS:
        return device in senders(plan)
    return fault in (Fault.DEAD_BEFORE, Fault.HEAD_DEAD)


def checked(run: Played, t: int, found: Behind, dead: set[int]) -> None:
    """Everybody alive counts once with its own mass, a dead device at most once."""
    updates = updates_of(run, t)
    assert updates.keys() == set(DEVICES)
    everyone = behind_of(updates)
    assert found.keys() <= everyone.keys()
    for key, who in everyone.items():
        counted = found.get(key, {})
        assert counted.items() <= who.items()
        assert who.keys() - counted.keys() <= dead


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("plan", PLANS)
def test_every_live_device_counts_exactly_once(
    cluster: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str, fault: Fault
) -> None:
    """Every edge round it is another one that fails: a head, a relay, a leaf."""
    failing(monkeypatch, lambda edge, t: {FAILING[t]: fault})
    counts, plans = watch_counts(monkeypatch), watch_plans(monkeypatch)
    run = play(cluster.with_values(d2d__plan=plan, rounds=len(FAILING)), tmp_path / "out")
    assert run.error is None
    assert [c.t for c in counts] == list(FAILING)
    accuracy = 0.0 if plan == "relay" else GOSSIP_ACCURACY
    for found, report in zip(counts, run.rounds, strict=True):
        device = FAILING[found.t]
        (made,) = plans[found.t]
        dead = {device} if gone(fault, device, made) else set[int]()
        checked(run, found.t, found.behind, dead)
        check_near(found.modules, found.behind, updates_of(run, found.t), accuracy=accuracy)
        assert report.dropped == {str(d): f"error {NO_ANSWER}: the device is gone" for d in dead}
        counted = {d for who in found.behind.values() for d in who}
        assert report.devices == sorted(counted)
        assert report.void == []
        if fault in (Fault.DEAD_BEFORE, Fault.HEAD_DEAD) and device in made.uploads:
            assert device not in counted  # what it had, nobody else has


@pytest.mark.parametrize("plan", PLANS)
def test_many_devices_may_fail_at_once(
    cluster: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    faults = {1: Fault.SLOW, 2: Fault.DEAD_AFTER, 4: Fault.DUPLICATE, 5: Fault.DEAD_BEFORE}
    failing(monkeypatch, lambda edge, t: faults)
    (counts, plans) = watch_counts(monkeypatch), watch_plans(monkeypatch)
    config = cluster.with_values(d2d__plan=plan, server__quorum=0.2)
    run = play(config, tmp_path / "out")
    (found,), (made,) = counts, plans[1]
    dead = {d for d, fault in faults.items() if gone(fault, d, made)}
    checked(run, 1, found.behind, dead)
    check_near(found.modules, found.behind, updates_of(run, 1), accuracy=GOSSIP_ACCURACY)
    assert {int(d) for d in run.rounds[0].dropped} == dead


def test_one_clusters_failure_leaves_the_other_alone(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.with_values(rounds=1, tree__period=1, d2d__plan="relay")
    plain = play(config, tmp_path / "plain")
    failing(monkeypatch, lambda edge, t: {4: Fault.DEAD_BEFORE} if edge == 1 else {})
    run = play(config, tmp_path / "out")
    assert run.rounds[0].dropped.keys() == {"4"}
    edges = [[r.files.edge(e).read_bytes() for r in (plain, run)] for e in (0, 1)]
    assert edges[0][0] == edges[0][1]
    assert edges[1][0] != edges[1][1]


class Broken(RecordingApp):
    """Device 3 cannot train, or answers what nobody can use, from some segment on."""

    def __init__(self, how: str, segment: int = 0) -> None:
        super().__init__()
        self.how, self.segment = how, segment

    def answer(
        self, message: Message, context: Context, *, index: int, kind: str, t: int
    ) -> Message:
        reply = super().answer(message, context, index=index, kind=kind, t=t)
        segment = message.content.config_records["config"].get("segment", 0)
        if index != 3 or kind != "train" or segment != self.segment:
            return reply
        if self.how == "raises":
            raise RuntimeError("out of order")
        state = {
            k: {n: a.copy() for n, a in s.items()} for k, s in modules_of(reply.content).items()
        }
        key = sorted(state)[0]
        name = sorted(state[key])[0]
        if self.how == "not finite":
            state[key][name].flat[0] = np.nan
        else:
            state[key][name] = np.zeros(7, np.float32)
        content = RecordDict({**reply.content, MODULES: modules_record(state)})
        return Message(content, reply_to=message)


@pytest.mark.parametrize(("plan", "segment"), [("relay", 0), ("gossip", 0), ("cooperative", 1)])
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raises", "RuntimeError: out of order"),
        ("not finite", "is not finite"),
        ("other shape", "have other names or shapes"),
    ],
)
def test_a_device_that_breaks_is_dropped_and_the_others_count(
    cluster: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    plan: str, segment: int, how: str, reason: str,
) -> None:  # fmt: skip
    counts = watch_counts(monkeypatch)
    run = play(cluster.with_values(d2d__plan=plan), tmp_path / "out", app=Broken(how, segment))
    assert run.error is None
    (found,), (report,) = counts, run.rounds
    assert report.dropped.keys() == {"3"}
    assert reason in report.dropped["3"]
    others = {d: u for d, u in updates_of(run, 1).items() if d != 3}
    assert found.behind == behind_of(others)
    assert report.devices == sorted(others)
    check_near(found.modules, found.behind, others, accuracy=GOSSIP_ACCURACY)


Lie = Callable[[Parcel], Parcel]


def wrong_mass(parcel: Parcel) -> Parcel:
    """Half of everybody else's mass."""
    return retold(parcel, lambda who: {d: n / 2 if d != min(who) else n for d, n in who.items()})


def too_much_mass(parcel: Parcel) -> Parcel:
    """More examples than a device has."""
    return retold(parcel, lambda who: {d: n * 100 for d, n in who.items()})


def foreign_device(parcel: Parcel) -> Parcel:
    """A device that is not in the cluster."""
    return retold(parcel, lambda who: {**who, 77: 1.0})


def idle_device(parcel: Parcel) -> Parcel:
    """A device of the cluster that trains nothing."""
    return retold(parcel, lambda who: {**who, 0: 1.0})


def retold(parcel: Parcel, tell: Callable[[Mapping[int, float]], dict[int, float]]) -> Parcel:
    return Parcel(parcel.update, {k: tell(who) for k, who in parcel.behind.items()})


def spoilt(parcel: Parcel) -> Parcel:
    """Values that are not finite."""
    for state in parcel.update.state.values():
        for array in state.values():
            array.flat[0] = np.inf
    return parcel


@pytest.mark.parametrize("lie", [wrong_mass, too_much_mass, foreign_device, idle_device, spoilt])
def test_a_lying_relay_is_not_believed(
    cluster: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: Lie
) -> None:
    class Lying(PeerGrid):
        def _exchange(self, asked: list[Message], timeout: float | None) -> list[Message]:
            return [lied(reply) for reply in super()._exchange(asked, timeout)]

    def lied(reply: Message) -> Message:
        if reply.has_error() or PARCELS not in reply.content:
            return reply
        content = packed([lie(parcel) for parcel in parcels_of(reply.content)])
        for name in (TRAINED, "metrics"):
            content[name] = reply.content[name]
        reply.content = content
        return reply

    monkeypatch.setattr("strategies.federation.PeerGrid", Lying)
    counts = watch_counts(monkeypatch)
    run = play(cluster.with_values(d2d__plan="relay"), tmp_path / "out")
    (found,), (report,) = counts, run.rounds
    updates = updates_of(run, 1)
    # All are asked directly, the liar too, and say themselves what they have.
    assert found.behind == behind_of(updates)
    check_near(found.modules, found.behind, updates)
    assert report.dropped == {}
    asks = [row for row in run.files.transfers()[1] if row.phase == "ask"]
    assert sorted(row.dst for row in asks) == [f"device/{d}" for d in DEVICES]


class Exaggerating(RecordingApp):
    """Device 3 claims more examples than it has."""

    def answer(
        self, message: Message, context: Context, *, index: int, kind: str, t: int
    ) -> Message:
        reply = super().answer(message, context, index=index, kind=kind, t=t)
        if index == 3 and kind == "train":
            mass = reply.content.metric_records["mass"]
            for name in list(mass):
                mass[name] = 1e6
        return reply


@pytest.mark.parametrize("plan", PLANS)
def test_who_exaggerates_harms_itself_alone(
    cluster: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    counts = watch_counts(monkeypatch)
    run = play(cluster.with_values(d2d__plan=plan), tmp_path / "out", app=Exaggerating())
    (found,), (report,) = counts, run.rounds
    others = {d: u for d, u in updates_of(run, 1).items() if d != 3}
    assert report.dropped.keys() == {"3"}
    assert "but it has" in report.dropped["3"]
    assert found.behind == behind_of(others)
    check_near(found.modules, found.behind, others, accuracy=GOSSIP_ACCURACY)


def test_a_direct_upload_that_fails_is_reported(
    cluster: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mute(PeerGrid):
        def _upload(self, message: Message) -> Message:
            if self.index_of(message.metadata.dst_node_id) == 3:
                return Message(Error(NO_ANSWER, "battery empty"), reply_to=message)
            return super()._upload(message)

    late: Faults = lambda edge, t: dict.fromkeys(DEVICES, Fault.SLOW)  # noqa: E731
    monkeypatch.setattr("strategies.federation.PeerGrid", functools.partial(Mute, faults=late))
    counts, plans = watch_counts(monkeypatch), watch_plans(monkeypatch)
    run = play(cluster.with_values(d2d__plan="relay"), tmp_path / "out")
    (found,), (report,) = counts, run.rounds
    assert 3 not in plans[1][0].uploads
    others = {d: u for d, u in updates_of(run, 1).items() if d != 3}
    assert found.behind == behind_of(others)
    assert report.dropped == {"3": f"error {NO_ANSWER}: battery empty"}
    assert report.devices == sorted(others)
    check_near(found.modules, found.behind, others)
