from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict

from hffm_flower.errors import QuorumError
from hffm_flower.modules import ModularState, ModuleKey
from hffm_flower.records import (
    CONFIG,
    MASS,
    MODULES,
    REPORT,
    mass_record,
    modules_of,
    modules_record,
    number,
)
from hffm_flower.report import RoundReport
from hffm_flower.schedule import Schedule
from strategies.cloud import CloudStrategy
from strategies.grids import EVALUATE_CLUSTER, TRAIN_CLUSTER
from strategies.modular import Member
from tests.support.memory import (
    KEYS,
    A,
    H,
    MemoryGrid,
    P,
    become_server,
    module,
    numbered,
    same,
)

START: ModularState = {A: module(0), H: module(0), P: module(0)}
EMPTY = ArrayRecord()


class Cloud:
    """A cloud strategy, its record, and edges 1.. that answer by hand."""

    def __init__(
        self,
        *,
        policy: str = "",
        method: str = "h-fedfm",
        period: int = 2,
        rounds: int = 4,
        holdings: Sequence[tuple[ModuleKey, ...]] = (KEYS, KEYS),
        quorum: float = 0.5,
        optimizer: str = "*=mean",
        report_every: int = 1,
    ) -> None:
        become_server()
        self.rows: list[RoundReport] = []
        self.states: list[ModularState] = []
        self.grid = MemoryGrid({})
        self.strategy = CloudStrategy(
            {1 + e: Member(e, keys) for e, keys in enumerate(holdings)},
            Schedule.of(KEYS, method=method, policy=policy, period=period, rounds=rounds),
            START,
            rule="mean", optimizer=optimizer, quorum=quorum, deadline_s=3.0,
            report_every=report_every,
            on_round=self._row,
        )  # fmt: skip

    def _row(self, report: RoundReport, modules: ModularState) -> None:
        self.rows.append(report)
        self.states.append(dict(modules))

    def ask(self, i: int) -> list[Message]:
        asked = self.strategy.configure_train(i, EMPTY, ConfigRecord(), self.grid)
        return [numbered(m) for m in asked]

    def ask_evaluate(self, i: int) -> list[Message]:
        asked = self.strategy.configure_evaluate(i, EMPTY, ConfigRecord(), self.grid)
        return [numbered(m) for m in asked]

    def exchange(self, i: int, *replies: Message) -> None:
        self.strategy.aggregate_train(i, replies)

    def close(self, i: int, *replies: Message) -> None:
        self.strategy.aggregate_evaluate(i, replies)


def answer(
    message: Message,
    state: ModularState | None = None,
    mass: float = 1.0,
    *,
    devices: Iterable[int] | None = (0,),
    dropped: str = "",
) -> Message:
    first, last = (number(message.content, CONFIG, n) for n in ("first", "last"))
    rows = [RoundReport(t, devices=list(devices or ())) for t in range(first, last + 1)]
    if dropped:
        rows[-1].dropped["0"] = dropped
    content = RecordDict(
        {
            MODULES: modules_record(state or {}),
            MASS: mass_record(dict.fromkeys(state or {}, mass)),
            REPORT: ConfigRecord({"rounds": [r.to_json() for r in rows]}),
        }
    )
    return Message(content, reply_to=message)


def error(message: Message) -> Message:
    return Message(Error(2, "edge broke"), reply_to=message)


def carried(messages: Iterable[Message]) -> list[set[ModuleKey]]:
    return [set(modules_of(m.content)) for m in messages]


def test_one_of_flowers_rounds_spans_the_edge_rounds_since_the_last_exchange() -> None:
    cloud = Cloud(period=4, rounds=10)
    spans = [cloud.strategy.span(i) for i in (1, 2, 3)]
    assert spans == [(1, 4), (5, 8), (9, 10)]
    assert cloud.strategy.round_timeout_s() == 3 * 3.0 * 4
    (one, two) = cloud.ask(2)
    assert [number(one.content, CONFIG, n) for n in ("first", "last")] == [5, 8]
    assert (one.metadata.message_type, one.metadata.group_id) == (TRAIN_CLUSTER, "8")
    assert [m.metadata.dst_node_id for m in (one, two)] == [1, 2]
    assert one.metadata.ttl == 36.0


def test_only_what_an_edge_lacks_is_sent_down() -> None:
    cloud = Cloud(policy="head/*=cloud:1 adapter/*=cloud:2 prompt/*=edge", holdings=(KEYS, (A, H)))
    one, two = cloud.ask(1)
    assert carried([one, two]) == [set(KEYS), {A, H}], "at first everything that it holds"
    cloud.exchange(1, answer(one, {H: module(2)}, 1), answer(two, {H: module(6)}, 3))
    assert same(cloud.strategy.modules[H], module(5))
    evaluate = cloud.ask_evaluate(1)
    assert carried(evaluate) == [{H}, {H}]
    assert {m.metadata.message_type for m in evaluate} == {EVALUATE_CLUSTER}
    assert same(modules_of(evaluate[0].content)[H], module(5))
    # Edge 2 fails to answer: it may not have the head, so it is sent again; edge 1 has all.
    cloud.close(1, answer(evaluate[0]), error(evaluate[1]))
    one, two = cloud.ask(2)
    assert carried([one, two]) == [set(), {H}]
    cloud.exchange(2, answer(one, {H: module(1), A: module(4)}), answer(two))
    assert carried(cloud.ask_evaluate(2)) == [{A, H}, {A, H}]
    assert cloud.strategy.versions == {A: 2, H: 2, P: 0}


def test_every_edge_round_is_reported_once_in_order() -> None:
    cloud = Cloud(period=3, rounds=8)
    for i in (1, 2, 3):
        asked = cloud.ask(i)
        assert [r.t for r in cloud.rows] == list(range(1, 3 * i - 2))
        cloud.exchange(i, *(answer(m, {A: module(i)}, devices=[e]) for e, m in enumerate(asked)))
        cloud.close(i, *map(answer, cloud.ask_evaluate(i)))
    assert [r.t for r in cloud.rows] == list(range(1, 9))
    assert all(r.devices == [0, 1] for r in cloud.rows)
    assert all(a.seconds <= b.seconds for a, b in zip(cloud.rows, cloud.rows[1:], strict=False))
    assert [float(s[A]["w"][0]) for s in cloud.states] == [1, 1, 1, 2, 2, 2, 3, 3]


def test_below_the_quorum_of_edges_the_modules_stay_and_nothing_is_evaluated() -> None:
    cloud = Cloud(quorum=0.6)
    one, two = cloud.ask(1)
    cloud.exchange(1, answer(one, {H: module(9)}), error(two))
    assert same(cloud.strategy.modules[H], START[H])
    assert cloud.strategy.versions[H] == 0
    assert cloud.ask_evaluate(1) == [], "edges would show their own modules as the cloud's"
    cloud.close(1)
    assert cloud.rows[-1].dropped == {"edge 1": "error 2: edge broke"}
    assert carried(cloud.ask(2)) == [set(), set(KEYS)]


def test_an_edge_that_fails_does_not_cost_the_others() -> None:
    cloud = Cloud(quorum=0.5)
    one, two = cloud.ask(1)
    bad = answer(two, {H: module(float("nan"))})
    cloud.exchange(1, answer(one, {H: module(9)}, 2), bad)
    assert same(cloud.strategy.modules[H], module(9))
    evaluate = cloud.ask_evaluate(1)
    assert carried(evaluate) == [{H}, set(KEYS)]
    cloud.close(1, *map(answer, evaluate))
    assert cloud.rows[-1].dropped == {"edge 1": "head/h/w is not finite, or so large that sums "
                                                "are not"}  # fmt: skip


def test_when_no_device_of_any_edge_could_be_used_the_run_ends() -> None:
    cloud = Cloud()
    one, two = cloud.ask(1)
    with pytest.raises(QuorumError, match="up to edge round 2: error 2: edge broke; no answer"):
        cloud.exchange(1, error(one), answer(two, devices=None, dropped="no answer within 3 s"))
    assert cloud.rows == []
    cloud = Cloud()
    with pytest.raises(QuorumError, match="no device took part"):
        cloud.exchange(1, *(answer(m, devices=None) for m in cloud.ask(1)))


def test_one_device_is_enough_for_the_run_to_go_on() -> None:
    cloud = Cloud()
    one, two = cloud.ask(1)
    cloud.exchange(1, answer(one, {A: module(3)}), answer(two, devices=None))
    assert same(cloud.strategy.modules[A], module(3))


def test_modules_that_nobody_trained_stay_in_their_version() -> None:
    cloud = Cloud()
    asked = cloud.ask(1)
    cloud.exchange(1, *(answer(m, {A: module(1), H: module(7)}, 0.0) for m in asked))
    assert all(same(cloud.strategy.modules[k], START[k]) for k in KEYS)
    assert cloud.strategy.versions == dict.fromkeys(KEYS, 0)


def test_the_server_optimizer_acts_on_the_clouds_modules() -> None:
    cloud = Cloud(optimizer="head=momentum:0.5:0")
    cloud.exchange(1, *(answer(m, {H: module(8), A: module(8)}) for m in cloud.ask(1)))
    assert same(cloud.strategy.modules[H], module(4))
    assert same(cloud.strategy.modules[A], module(8))


def test_without_cloud_modules_it_only_keeps_the_record() -> None:
    cloud = Cloud(method="edge-only", rounds=5, report_every=2)
    for i, spans in ((1, [1, 2]), (2, [3, 4]), (3, [5])):
        asked = cloud.ask(i)
        assert carried(asked) == [set(KEYS) if i == 1 else set()] * 2
        cloud.exchange(i, *map(answer, asked))
        assert cloud.ask_evaluate(i) == []
        cloud.close(i)
        assert [r.t for r in cloud.rows[-len(spans) :]] == spans


@pytest.mark.parametrize("rounds", [None, ["{"], ['{"t": 1, "smell": 2, "scores": {}}']])
def test_an_edge_without_a_report_is_dropped(rounds: list[str] | None) -> None:
    cloud = Cloud()
    one, two = cloud.ask(1)
    record = ConfigRecord() if rounds is None else ConfigRecord({"rounds": rounds})
    odd = Message(RecordDict({MODULES: modules_record({}), REPORT: record}), reply_to=two)
    cloud.exchange(1, answer(one), odd)
    cloud.close(1)
    assert cloud.rows[-1].dropped["edge 1"].startswith("its report cannot be read: ")
