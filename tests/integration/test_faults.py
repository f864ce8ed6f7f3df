"""A faulty node is data: dropped with its reason, the others' mass renormalised."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from hffm_flower.config import RunConfig
from hffm_flower.errors import Interrupted, ProtocolError, QuorumError
from hffm_flower.modules import ModularState, ModularUpdate, merge
from hffm_flower.records import (
    modules_of,
    read_state,
    to_bytes,
    update_of,
)
from tests.support.bad_devices import DEADLINE_S, FAULTY, REASON, Fault, faulty, grid_with
from tests.support.fake_grid import FIRST_NODE, FakeGrid
from tests.support.played import Played, RecordingApp, play


def bits(state: ModularState) -> bytes:
    return to_bytes(state)


def updates(run: Played, t: int, devices: Collection[int]) -> list[ModularUpdate]:
    """What ``devices`` sent in edge round ``t``, in order of their index."""
    calls = {c.index: c for c in run.app.of("train") if c.t == t}
    return [update_of(calls[k].reply.content) for k in sorted(devices)]


@pytest.fixture
def quick(tiny: RunConfig) -> RunConfig:
    return tiny.with_values(rounds=1, server__deadline_s=DEADLINE_S, tree__period=1)


@pytest.mark.parametrize("fault", Fault)
def test_a_faulty_device_is_dropped_and_the_others_count(
    quick: RunConfig, tmp_path: Path, fault: Fault
) -> None:
    began = time.monotonic()
    run = faulty(quick, tmp_path / "out", fault)
    assert time.monotonic() - began < 30
    assert run.error is None
    (report,) = run.rounds
    assert report.devices == [1, 2, 4, 5]
    assert report.dropped.keys() == {str(FAULTY)}
    assert REASON[fault] in report.dropped[str(FAULTY)]
    assert report.void == []
    line = json.loads((run.files.root / "rounds.jsonl").read_text())
    assert REASON[fault] in line["dropped"][str(FAULTY)]
    assert run.result["status"] == "finished"
    assert run.result["summary"]["dropped"] == 1
    # The merge without it, edge by edge and then over the edges, bit for bit.
    left, right = merge(updates(run, 1, {1, 2})), merge(updates(run, 1, {4, 5}))
    expected = merge([left, right])
    cloud = run.files.cloud()
    assert bits({k: cloud[k] for k in expected.state}) == bits(expected.state)
    saved = read_state(run.files.edge(1))
    assert bits({k: saved[k] for k in right.state}) == bits(right.state)
    # What only it could have trained stays as it was.
    begun = {k: s for c in run.app.of("train") for k, s in modules_of(c.question.content).items()}
    kept = cloud.keys() - expected.state.keys()
    assert all(bits({k: cloud[k]}) == bits({k: begun[k]}) for k in kept)


@pytest.mark.parametrize("fault", [Fault.RAISES, Fault.SILENT])
def test_a_device_may_die_in_the_middle(tiny: RunConfig, tmp_path: Path, fault: Fault) -> None:
    config = tiny.with_values(rounds=3, server__deadline_s=DEADLINE_S)
    run = faulty(config, tmp_path / "out", fault, first=2)
    assert run.error is None
    assert [FAULTY in r.devices for r in run.rounds] == [True, False, False]
    assert [str(FAULTY) in r.dropped for r in run.rounds] == [False, True, True]
    assert run.result["summary"]["dropped"] == 2
    # Trained once since the last exchange: it counts in the edge's mass, not in the value.
    expected = merge(updates(run, 2, {4, 5})).state
    begun = {
        k: s
        for c in run.app.of("evaluate")
        if c.t == 2 and c.index in (4, 5)
        for k, s in modules_of(c.question.content).items()
    }
    assert bits({k: begun[k] for k in expected}) != bits(expected)  # the cloud mixed edges
    edge = {
        k: s
        for c in run.app.of("train")
        if c.t == 3 and c.index in (4, 5)
        for k, s in modules_of(c.question.content).items()
    }
    assert bits(edge) == bits({k: begun[k] for k in edge})


def test_a_device_silent_in_evaluation_is_told(tiny: RunConfig, tmp_path: Path) -> None:
    config = tiny.with_values(rounds=1, server__deadline_s=DEADLINE_S)
    run = play(config, tmp_path / "out", grid=grid_with({FAULTY: 1}, kinds=("evaluate",)))
    assert run.error is None
    (report,) = run.rounds
    assert report.devices == [1, 2, 3, 4, 5]
    assert report.dropped == {str(FAULTY): "evaluate: error 3: no answer within 0.4 s"}
    assert 0 < run.result["summary"]["uncovered"] < 1
    assert report.scores["cloud"]["iid"]["tiny-vqa"].total == 67


@pytest.mark.parametrize("fault", [Fault.RAISES, Fault.NAN, Fault.SILENT])
def test_an_edge_without_devices_leaves_the_others_alone(
    tiny: RunConfig, tmp_path: Path, fault: Fault
) -> None:
    config = tiny.with_values(rounds=2, tree__period=1, server__deadline_s=DEADLINE_S)
    run = faulty(config, tmp_path / "out", fault, devices=(3, 4, 5))
    assert run.error is None
    assert run.result["status"] == "finished"
    for report in run.rounds:
        assert report.devices == [1, 2]
        assert report.dropped.keys() == {"3", "4", "5"}
        assert report.void == [1]
    expected = merge([merge(updates(run, 2, {1, 2}))]).state
    cloud = run.files.cloud()
    for key, state in expected.items():
        assert all(np.allclose(cloud[key][n], a, rtol=1e-6, atol=0) for n, a in state.items())


def test_below_the_quorum_nothing_is_published(quick: RunConfig, tmp_path: Path) -> None:
    config = quick.with_values(server__quorum=0.9)
    run = faulty(config, tmp_path / "out", Fault.NAN)
    assert run.error is None
    (report,) = run.rounds
    assert (report.void, report.devices) == ([1], [1, 2])
    assert run.result["summary"]["void"] == 1
    begun = {k: s for c in run.app.of("train") for k, s in modules_of(c.question.content).items()}
    kept = read_state(run.files.edge(1))
    assert len(kept) >= 6
    assert all(bits({k: s}) == bits({k: begun[k]}) for k, s in kept.items())
    cloud, alone = run.files.cloud(), merge([merge(updates(run, 1, {1, 2}))]).state
    assert bits({k: cloud[k] for k in alone}) == bits(alone)
    # The same two of three devices suffice for a quorum of 0.6.
    enough = faulty(quick.with_values(server__quorum=0.6), tmp_path / "enough", Fault.NAN)
    assert enough.rounds[0].void == []
    assert enough.rounds[0].devices == [1, 2, 4, 5]


@pytest.mark.parametrize("fault", [Fault.RAISES, Fault.SILENT, Fault.GARBAGE])
@pytest.mark.parametrize("first", [1, 3])
def test_with_no_device_left_the_run_fails_and_keeps_what_it_had(
    tiny: RunConfig, tmp_path: Path, fault: Fault, first: int
) -> None:
    config = tiny.with_values(rounds=4, tree__period=2, server__deadline_s=DEADLINE_S)
    began = time.monotonic()
    run = faulty(config, tmp_path / "out", fault, devices=range(6), first=first)
    assert time.monotonic() - began < 30
    assert isinstance(run.error, QuorumError)
    assert run.result["status"] == "failed"
    assert REASON[fault] in run.result["reason"]
    assert [r.t for r in run.rounds] == list(range(1, first + 2)), "up to the failed exchange"
    assert [r.t for r in run.rounds if r.void] == [first, first + 1]
    assert [r["t"] for r in run.result["rounds"]] == list(range(1, first + 2))
    assert bool(run.files.cloud()) == (first == 3), "what was aggregated at least once"
    if first == 3:
        assert run.result["summary"]["tier"] == "cloud"


def test_nobody_there(quick: RunConfig, tmp_path: Path) -> None:
    class Empty(FakeGrid):
        def get_node_ids(self) -> Iterable[int]:
            return [FIRST_NODE]

    run = play(quick, tmp_path / "out", grid=Empty)
    assert isinstance(run.error, QuorumError)
    assert run.result["status"] == "failed"
    assert run.result["reason"] == "1 of 6 nodes were online after 0.4 s"
    assert run.rounds == []


class ProfileApp(RecordingApp):
    """One device's profile, or its initial modules, are altered."""

    def __init__(self, kind: str, record: str, **changes: object) -> None:
        super().__init__()
        self.kind, self.record, self.changes = kind, record, changes

    def answer(
        self, message: Message, context: Context, *, index: int, kind: str, t: int
    ) -> Message:
        reply = super().answer(message, context, index=index, kind=kind, t=t)
        if index == FAULTY and kind == self.kind:
            record = reply.content.config_records[self.record]
            changed = json.loads(str(record["json"])) | self.changes
            content = RecordDict(
                {**reply.content, self.record: ConfigRecord({"json": json.dumps(changed)})}
            )
            return Message(content, reply_to=message)
        return reply


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"version": "0.0.1 (protocol 0)"}, "device 3: its version 0.0.1 (protocol 0), here"),
        ({"settings": {"seed": 99}}, "device 3: its d2d.accuracy None, here 0.01"),
        ({"index": 2}, "device index 2 is taken by another node"),
        ({"layout": {"head/tiny-vqa/out.bias": "float32[9]"}}, "is float32[9], but float32[4]"),
    ],
)
def test_a_device_that_does_not_fit_is_refused_before_the_start(
    quick: RunConfig, tmp_path: Path, changes: dict[str, object], why: str
) -> None:
    run = play(quick, tmp_path / "out", app=ProfileApp("query.profile", "profile", **changes))
    assert run.error is None
    refused = run.result["refused_nodes"]
    assert refused.keys() == {str(FIRST_NODE + FAULTY)}
    assert why in refused[str(FIRST_NODE + FAULTY)]
    assert run.rounds[0].devices == [1, 2, 4, 5]
    assert [c.kind for c in run.app.calls if c.index == FAULTY] == ["query.profile"]


def test_a_device_that_is_not_there_is_refused(quick: RunConfig, tmp_path: Path) -> None:
    run = play(quick, tmp_path / "out", grid=grid_with({FAULTY: 0}, kinds=("query.profile",)))
    assert run.error is None
    refused = run.result["refused_nodes"]
    assert refused.keys() == {str(FIRST_NODE + FAULTY)}
    assert refused[str(FIRST_NODE + FAULTY)].endswith("error 3: no answer within 0.4 s")
    assert run.rounds[0].devices == [1, 2, 4, 5]


def test_other_initial_bits_end_the_run_before_round_one(quick: RunConfig, tmp_path: Path) -> None:
    key = "adapter/tiny.0"
    run = play(quick, tmp_path / "out", app=ProfileApp("query.init", "digests", **{key: "0" * 64}))
    assert isinstance(run.error, ProtocolError)
    assert f"device {FAULTY} begins with other bits in {key};" in str(run.error)
    assert run.result["status"] == "failed"
    assert run.result["reason"] == str(run.error)
    assert run.app.of("train") == []
    assert run.rounds == []


@pytest.mark.parametrize(("at", "kept"), [(1, []), (2, [1]), (3, [1, 2])])
def test_a_stopped_run_keeps_its_rounds(
    tiny: RunConfig, tmp_path: Path, at: int, kept: list[int]
) -> None:
    stop = threading.Event()

    class Stopping(RecordingApp):
        def answer(
            self, message: Message, context: Context, *, index: int, kind: str, t: int
        ) -> Message:
            if kind == "train" and t == at:
                stop.set()
            return super().answer(message, context, index=index, kind=kind, t=t)

    run = play(tiny.with_values(rounds=6), tmp_path / "out", app=Stopping(), stop=stop)
    assert isinstance(run.error, Interrupted)
    assert run.result["status"] == "interrupted"
    assert run.result["reason"] == "stopped on request"
    assert [r.t for r in run.rounds] == kept
    assert [r["t"] for r in run.result["rounds"]] == kept
    assert max(c.t for c in run.app.of("train")) == at
    aggregated = {str(k) for k in run.files.cloud()}
    assert aggregated >= ({"adapter/tiny.0", "head/tiny-vqa"} if at == 3 else set())
    assert bool(aggregated) == (at == 3)
    assert len(read_state(run.files.edge(0))) >= 3


@pytest.mark.parametrize(
    "values",
    [[float("nan"), float("nan"), 0.0], [1.0, float("inf"), 0.0]],
    ids=["nan", "inf"],
)
def test_counts_that_are_no_counts_harm_nobody_else(
    quick: RunConfig, tmp_path: Path, values: list[float]
) -> None:
    class Counting(RecordingApp):
        def answer(
            self, message: Message, context: Context, *, index: int, kind: str, t: int
        ) -> Message:
            reply = super().answer(message, context, index=index, kind=kind, t=t)
            if index == FAULTY and kind == "evaluate":
                scores = MetricRecord({"iid/tiny-vqa": values})
                return Message(RecordDict({"scores": scores}), reply_to=message)
            return reply

    run = play(quick, tmp_path / "out", app=Counting())
    assert run.error is None
    (report,) = run.rounds
    assert report.devices == [1, 2, 3, 4, 5]
    assert report.scores["cloud"]["iid"]["tiny-vqa"].total == 67
