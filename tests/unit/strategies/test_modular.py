from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict

from hffm_flower.modules import ModularUpdate, ModuleKey, merge
from hffm_flower.records import MASS, MODULES, update_of
from hffm_flower.schedule import Schedule
from strategies import modular
from strategies.edge import EdgeStrategy
from strategies.modular import Member
from tests.support.memory import KEYS, A, H, P, module, question, same, trained

START = {A: module(0, 0), H: module(1, 1), P: module(2)}


def strategy(*, quorum: float = 0.5, optimizer: str = "*=mean") -> EdgeStrategy:
    """The abstract class under its lightest subclass; devices 0..2 on nodes 12, 11, 10."""
    schedule = Schedule.of(KEYS, method="edge-only", policy="", period=1, rounds=9)
    made = EdgeStrategy(
        0, {12 - k: Member(k, (A, H) if k else (A, H, P)) for k in (2, 1, 0)}, schedule,
        seed=1, fraction=1.0, rule="mean", optimizer=optimizer, quorum=quorum, deadline_s=1.0,
        report_every=1,
    )  # fmt: skip
    made.adopt(START, 0)
    return made


def bad(state: Any, mass: Any = 1.0) -> Callable[[Message], Message]:
    return lambda message: trained(message, state, mass)


def broken(message: Message) -> Message:
    junk = Array(dtype="uint8", shape=(3,), stype="numpy.ndarray", data=b"abc")
    record = ArrayRecord({MODULES: junk})
    return Message(RecordDict({MODULES: record, MASS: MetricRecord({})}), reply_to=message)


FAULTS: dict[str, tuple[Callable[[Message], Message], str]] = {
    "error": (lambda m: Message(Error(2, "it\nraised"), reply_to=m), "error 2: it raised"),
    "shape": (bad({A: module(1, 2, 3)}), "tensors of adapter/a have other names or shapes"),
    "shape of same size": (bad({A: {"w": np.zeros((2, 1), np.float32)}}), "names or shapes"),
    "tensor name": (bad({A: {"v": np.zeros(2, np.float32)}}), "names or shapes"),
    "tensor missing": (bad({A: {}, H: module(1, 2)}), "different modules: adapter/a"),
    "nan": (bad({A: module(1, float("nan"))}), "adapter/a/w is not finite"),
    "infinite": (bad({A: module(1, float("inf"))}), "adapter/a/w is not finite"),
    "float64": (bad({A: {"w": np.zeros(2)}}), "adapter/a/w is float64, not float32"),
    "unknown module": (
        bad({ModuleKey.parse("head/x"): module(1)}), "sent head/x, which it was not asked for"
    ),
    "module it does not hold": (bad({P: module(1)}), "sent prompt/p, which it was not asked for"),
    "mass without module": (bad({A: module(1, 1)}, {A: 1.0, H: 1.0}), "different modules: head/h"),
    "negative mass": (bad({A: module(1, 1)}, -1.0), "adapter/a=-1.0"),
    "mass nan": (bad({A: module(1, 1)}, float("nan")), "adapter/a=nan"),
    "mass beyond float32": (bad({A: module(1, 1)}, 1e300), "mass of adapter/a"),
    "mass below float32": (bad({A: module(1, 1)}, 1e-300), "mass of adapter/a"),
    "values that overflow": (bad({A: module(1, 3e38)}, 50.0), "adapter/a/w"),
    "broken bytes": (broken, "is no numpy array"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_that_cannot_be_used_is_dropped_with_the_reason(fault: str) -> None:
    make, why = FAULTS[fault]
    made = strategy()
    good = trained(question(12), {A: module(3, 3)}, 2.0)
    got = made.gather([make(question(11)), good])
    assert [a.member.index for a in got.answers] == [0]
    assert list(got.refused) == [1]
    assert why in got.refused[1]
    assert same(got.update.state[A], module(3, 3))
    assert got.update.mass == {A: 2.0}


def test_answers_are_in_the_order_of_the_children_however_they_come() -> None:
    made = strategy()
    replies = [trained(question(n), {A: module(n, 0)}, 1.0) for n in (10, 12, 11)]
    got = made.gather(replies)
    assert [(a.member.index, a.message) for a in got.answers] == [
        (0, replies[1]), (1, replies[2]), (2, replies[0])
    ]  # fmt: skip
    assert got.refused == {}
    in_order = merge(ModularUpdate.of({A: module(n, 0)}, 1.0) for n in (12, 11, 10))
    assert same(got.update.state[A], in_order.state[A])
    assert [m.index for m in made.members.values()] == [0, 1, 2]


def test_what_children_may_send_can_be_widened() -> None:
    made = strategy()
    reply = trained(question(11), {P: module(5)}, 1.0)
    got = made.gather([reply], allowed=KEYS)
    assert len(got.answers) == 1
    assert got.behind == {P: {1: 1.0}}


def test_one_reply_is_unpacked_at_a_time() -> None:
    """Memory is O(one model): an unpacked update is gone before the next is made."""
    made = strategy()
    replies = [trained(question(n), {A: module(n, 0)}, 1.0) for n in (10, 11, 12)]
    alive: list[weakref.ref[Any]] = []
    most = 0
    unpack = update_of

    def watched(content: RecordDict) -> ModularUpdate:
        nonlocal most
        update = unpack(content)
        alive.append(weakref.ref(update.state[A]["w"]))
        most = max(most, sum(ref() is not None for ref in alive))
        return update

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modular, "update_of", watched)
        got = made.gather(replies)
    assert len(got.answers) == len(alive) == 3
    assert most <= 2, "the one before may still be held while the next is unpacked"


def test_a_child_cannot_have_more_mass_than_examples() -> None:
    made = strategy()
    made.members[11] = Member(1, (A, H), examples=50.0)
    much, enough = (trained(question(11), {A: module(1, 1)}, mass) for mass in (50.1, 50.0))
    assert "but it has 50 examples" in made.gather([much]).refused[1]
    assert made.gather([enough]).refused == {}


@pytest.mark.parametrize(
    ("quorum", "usable", "asked", "want"),
    [
        (0.5, 2, 4, True), (0.5, 1, 4, False), (0.5, 2, 5, False), (1.0, 3, 3, True),
        (1.0, 2, 3, False), (0.0, 1, 9, True), (0.0, 0, 9, False), (0.5, 0, 0, True),
    ],
)  # fmt: skip
def test_quorum(quorum: float, usable: int, asked: int, want: bool) -> None:
    assert strategy(quorum=quorum).has_quorum(usable, asked) is want


def test_publish_replaces_what_was_merged_and_nothing_else() -> None:
    made = strategy()
    before = made.modules
    made.publish(ModularUpdate.of({A: module(7, 8)}, 3), 4, final=[A])
    assert same(made.modules[A], module(7, 8))
    assert made.modules[H] is before[H]
    assert made.versions == {A: 4, H: 0, P: 0}
    assert same(before[A], START[A]), "the old state is still whole"


def test_publish_is_all_or_nothing() -> None:
    made = strategy(optimizer="head=adam")
    before, versions = made.modules, dict(made.versions)
    unfit = {"v": np.zeros(1, np.float32)}
    with pytest.raises(KeyError):
        made.publish(ModularUpdate.of({A: module(7, 8), H: unfit}, 3), 4, final=KEYS)
    assert made.modules is before
    assert made.versions == versions


def test_the_optimizer_acts_on_what_this_tier_decides() -> None:
    made = strategy(optimizer="*=momentum:0.5:0")
    merged = merge([ModularUpdate.of({A: module(4, 4), H: module(5, 5)}, 1)])
    made.publish(merged, 1, final=[H])
    assert same(made.modules[A], module(4, 4))
    assert same(made.modules[H], module(3, 3))


def test_a_summary_names_the_size(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="strategies.modular"):
        strategy().summary()
    assert "EdgeStrategy: 3 children, 3 modules" in caplog.text
