from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict

from hffm_flower.modules import ModuleKey
from hffm_flower.records import CONFIG, REPORT, modules_of, modules_record, number, update_of
from hffm_flower.report import RoundReport, Score
from hffm_flower.schedule import Schedule
from strategies.edge import EdgeStrategy
from strategies.grids import EVALUATE_CLUSTER, TRAIN_CLUSTER, ClusterGrid
from strategies.modular import Member
from strategies.selection import participants
from tests.support.memory import (
    KEYS,
    A,
    H,
    MemoryGrid,
    P,
    cluster_message,
    module,
    numbered,
    same,
    scored,
    trained,
)

START = {A: module(0, 0), H: module(1), P: module(2)}
ALL: Mapping[int, tuple[ModuleKey, ...]] = dict.fromkeys(range(4), KEYS)


def edge_of(
    holdings: Mapping[int, tuple[ModuleKey, ...]] = ALL,
    *,
    policy: str = "",
    method: str = "h-fedfm",
    rounds: int = 4,
    fraction: float = 1.0,
    quorum: float = 0.5,
    rule: str = "mean",
    optimizer: str = "*=mean",
) -> EdgeStrategy:
    return EdgeStrategy(
        3, {100 + k: Member(k, keys) for k, keys in holdings.items()},
        Schedule.of(KEYS, method=method, policy=policy, period=2, rounds=rounds),
        seed=1, fraction=fraction, rule=rule, optimizer=optimizer, quorum=quorum, deadline_s=2.0,
        report_every=2,
    )  # fmt: skip


def play(
    edge: EdgeStrategy, message: Message, device: Callable[[Message], Message]
) -> tuple[Message, list[RoundReport], list[list[Message]]]:
    steps, log = edge.cluster_round(message.metadata.message_type, message.content), []
    try:
        asked = next(steps)
        while True:
            log.append(asked)
            asked = steps.send([device(numbered(m)) for m in asked])
    except StopIteration as stop:
        reply = Message(stop.value, reply_to=message)
        lines: Any = reply.content.config_records[REPORT]["rounds"]
        return reply, [RoundReport.from_json(line) for line in lines], log


def device(message: Message) -> Message:
    """Adds its index + 1 to what it got; weighs 10."""
    if message.metadata.message_type == "evaluate":
        return scored(message, {"iid/a": (3, 4, 3.0), "skewed/a": (1, 1, 1.0)})
    step = message.metadata.dst_node_id - 99
    state = {k: {n: a + step for n, a in s.items()} for k, s in modules_of(message.content).items()}
    return trained(message, state, 10.0, loss=5.0, examples=20)


def test_a_cluster_round_trains_evaluates_and_answers_with_what_is_due() -> None:
    edge = edge_of(policy="head/*=cloud:1")
    reply, reports, log = play(edge, cluster_message(TRAIN_CLUSTER, 3, 3, START), device)
    assert reply.metadata.dst_node_id == 1
    update = update_of(reply.content)
    assert update.mass == {H: 40.0}
    assert same(update.state[H], module(3.5))
    kinds = [(m.metadata.message_type, m.metadata.group_id) for m in log[0]]
    assert kinds == [("train", "3")] * 4
    (report,) = reports
    assert (report.t, report.loss_sum, report.trained, report.devices) == (
        3,
        20.0,
        80,
        [0, 1, 2, 3],
    )
    assert report.scores["edge"] == {"iid": {"a": Score(12, 16, 12.0)},
                                     "skewed": {"a": Score(4, 4, 4.0)}}  # fmt: skip


def test_devices_are_sent_what_they_hold() -> None:
    edge = edge_of({0: (A,), 1: KEYS})
    _, _, log = play(edge, cluster_message(TRAIN_CLUSTER, 1, 1, START), device)
    assert [set(modules_of(m.content)) for m in log[0]] == [{A}, set(KEYS)]


def test_only_rounds_of_the_last_cycle_are_evaluated() -> None:
    edge = edge_of(rounds=4)
    _, early, _ = play(edge, cluster_message(TRAIN_CLUSTER, 1, 2, START), device)
    _, late, log = play(edge, cluster_message(TRAIN_CLUSTER, 3, 4, {}), device)
    assert [set(r.scores) for r in early + late] == [set(), set(), {"edge"}, {"edge"}]
    assert [m[0].metadata.message_type for m in log] == ["train", "evaluate"] * 2
    assert [number(m[0].content, CONFIG, "t") for m in log] == [3, 3, 4, 4]


def test_an_evaluation_for_the_cloud_trains_nothing() -> None:
    edge = edge_of()
    reply, (report,), log = play(edge, cluster_message(EVALUATE_CLUSTER, 2, 2, START), device)
    assert [m.metadata.message_type for m in log[0]] == ["evaluate"] * 4
    assert len(log) == 1
    assert update_of(reply.content).mass == {}
    assert report.scores["cloud"]["iid"]["a"] == Score(12, 16, 12.0)
    assert all(same(edge.modules[k], START[k]) for k in KEYS)


def test_what_the_edge_ends_with_is_kept_before_the_cloud_overwrites_it() -> None:
    edge = edge_of(rounds=2)
    play(edge, cluster_message(TRAIN_CLUSTER, 1, 1, START), device)
    assert edge.final_modules == {}
    play(edge, cluster_message(TRAIN_CLUSTER, 2, 2, {}), device)
    play(edge, cluster_message(EVALUATE_CLUSTER, 2, 2, {H: module(99)}), device)
    assert same(edge.final_modules[H], module(6))
    assert same(edge.modules[H], module(99))


def test_a_share_of_the_devices_takes_part_and_all_are_evaluated() -> None:
    edge = edge_of(fraction=0.5, rounds=2)
    _, reports, log = play(edge, cluster_message(TRAIN_CLUSTER, 1, 2, START), device)
    for t in (1, 2):
        want = participants(range(4), fraction=0.5, seed=1, t=t)
        assert tuple(reports[t - 1].devices) == want
        assert [m.metadata.dst_node_id - 100 for m in log[2 * t - 2]] == list(want)
        assert len(log[2 * t - 1]) == 4


def failing(*nodes: int) -> Callable[[Message], Message]:
    def answer(message: Message) -> Message:
        if message.metadata.dst_node_id - 100 in nodes:
            return Message(Error(2, "broken"), reply_to=message)
        return device(message)

    return answer


def test_a_faulty_device_is_dropped_and_its_mass_renormalised() -> None:
    edge = edge_of()
    reply, (first, second), _ = play(edge, cluster_message(TRAIN_CLUSTER, 1, 2, START), failing(3))
    assert (first.devices, first.dropped) == ([0, 1, 2], {"3": "error 2: broken"})
    assert same(edge.modules[H], module(1 + 2 + 2))
    assert update_of(reply.content).mass[H] == 30.0
    assert second.void == []


def test_below_the_quorum_nothing_is_published_and_the_edge_says_so() -> None:
    edge = edge_of(rounds=8)
    reply, (report,), _ = play(edge, cluster_message(TRAIN_CLUSTER, 2, 2, START), failing(1, 2, 3))
    assert (report.void, report.devices, report.trained) == ([3], [], 0)
    assert set(report.dropped) == {"1", "2", "3"}
    assert all(edge.modules[k] is not None and same(edge.modules[k], START[k]) for k in KEYS)
    assert edge.versions == dict.fromkeys(KEYS, 1)
    assert update_of(reply.content).mass == {}


def test_a_device_that_fails_to_evaluate_is_named() -> None:
    edge = edge_of()
    _, (report,), _ = play(edge, cluster_message(EVALUATE_CLUSTER, 2, 2, START), failing(1))
    assert report.dropped == {"1": "evaluate: error 2: broken"}
    assert report.scores["cloud"]["iid"]["a"] == Score(9, 12, 9.0)


@pytest.mark.parametrize(
    "values", [[1.0], [1.0, 2.0, 3.0, 4.0], [float("nan")] * 3, [1.0, float("inf"), 1.0], 1.0]
)
def test_counts_that_are_none_are_not_added(values: Any) -> None:
    def odd(message: Message) -> Message:
        if message.metadata.dst_node_id == 100:
            record = MetricRecord({"iid/a": values})
            return Message(RecordDict({"scores": record}), reply_to=message)
        return device(message)

    _, (report,), _ = play(edge_of(), cluster_message(EVALUATE_CLUSTER, 2, 2, START), odd)
    assert report.scores["cloud"]["iid"]["a"] == Score(9, 12, 9.0)


@pytest.mark.parametrize("metrics", [{"loss": 1.0}, {"examples": float("nan"), "loss": [1.0]}])
def test_odd_metrics_do_not_cost_the_round(metrics: Any) -> None:
    def odd(message: Message) -> Message:
        reply = device(message)
        if message.metadata.message_type == "train":
            reply.content["metrics"] = MetricRecord(metrics)
        return reply

    edge = edge_of()
    _, (report,), _ = play(edge, cluster_message(TRAIN_CLUSTER, 1, 1, START), odd)
    assert report.devices == [0, 1, 2, 3]
    assert report.trained == 0
    assert same(edge.modules[H], module(3.5))


def test_modules_of_device_scope_neither_travel_nor_are_taken() -> None:
    edge = edge_of(policy="head/*=device")
    assert edge.lower_tier == "device"
    _, (report,), log = play(edge, cluster_message(TRAIN_CLUSTER, 1, 1, START), device)
    assert all(set(modules_of(m.content)) == {A, P} for m in log[0])

    def leaks(message: Message) -> Message:
        return trained(message, {H: module(9)}, 1.0)

    _, (report,), _ = play(edge, cluster_message(TRAIN_CLUSTER, 2, 2, {}), leaks)
    assert report.void == [3]
    assert report.dropped["0"] == "sent head/h, which it was not asked for"


def test_the_server_optimizer_acts_on_modules_of_edge_scope() -> None:
    edge = edge_of(policy="prompt/*=edge", optimizer="*=momentum:2:0")
    play(edge, cluster_message(TRAIN_CLUSTER, 1, 1, START), device)
    assert same(edge.modules[P], module(2 + 2 * 2.5))
    assert same(edge.modules[H], module(1 + 2.5))


def test_a_cluster_without_devices_answers_with_nothing() -> None:
    edge = edge_of({})
    reply, reports, log = play(edge, cluster_message(TRAIN_CLUSTER, 1, 2, START), device)
    assert log == [[], []]
    assert update_of(reply.content).mass == {}
    assert [(r.devices, r.void) for r in reports] == [([], []), ([], [])]


def test_an_edge_is_a_flower_strategy_under_flowers_own_loop() -> None:
    edge = edge_of(policy="*=edge", rounds=3)
    grid = MemoryGrid(dict.fromkeys(range(100, 104), device))
    result = edge.start(grid, modules_record(START), num_rounds=3, timeout=5)
    state = modules_of(RecordDict({"modules": result.arrays}))
    assert same(state[H], module(1 + 3 * 2.5))
    assert same(state[A], module(7.5, 7.5))
    assert [m.metadata.message_type for m in grid.sent] == (["train"] * 4 + ["evaluate"] * 4) * 3
    assert [number(m.content, CONFIG, "t") for m in grid.sent[::8]] == [1, 2, 3]
    assert {t: m["loss"] for t, m in result.train_metrics_clientapp.items()} == dict.fromkeys(
        (1, 2, 3), 0.25
    )
    assert {t: dict(m) for t, m in result.evaluate_metrics_clientapp.items()} == {
        t: {"iid/a": 0.75, "skewed/a": 1.0} for t in (1, 2, 3)
    }


def test_flowers_loop_and_a_cluster_round_make_the_same_bits() -> None:
    played, looped = (edge_of(policy="*=edge", rounds=2) for _ in range(2))
    play(played, cluster_message(TRAIN_CLUSTER, 1, 2, START), device)
    grid = MemoryGrid(dict.fromkeys(range(100, 104), device))
    looped.start(ClusterGrid(grid, list(grid.devices)), modules_record(START), num_rounds=2)
    assert all(same(played.modules[k], looped.modules[k]) for k in KEYS)
    assert played.versions == looped.versions
