"""Records of an exchange: who is admitted, and who sent what."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from flwr.app import ConfigRecord, RecordDict

from hffm_flower.d2d import Parcel
from hffm_flower.errors import ProtocolError
from hffm_flower.ledger import LinkClass, Phase, Transfer, to_line
from hffm_flower.modules import ModularUpdate, shapes
from hffm_flower.payload import (
    PLAN,
    SENT,
    Admission,
    Weight,
    admission_of,
    own_upload,
    peer_transfer,
    plan_of,
    plan_record,
    sent_of,
    sent_record,
    weigh_letter,
)
from hffm_flower.rpc.codec import Allowed, Envelope
from hffm_flower.rpc.letters import Writer
from tests.support.memory import A, H
from tests.support.peers import FIRST, state_of, tickets, update_of

TICKET = tickets({0: "x:1", 1: "x:2"})[1]
ADMISSION = Admission(
    TICKET, Allowed(shapes(state_of(0, (A, H))), {0: 1.5, 1: 2.0}), 60.0, {A: "ab"}
)
ROWS = [
    peer_transfer(3, Phase.SHARE, 0, 1, 0, Weight(100, ("adapter/a",), (8,))),
    peer_transfer(3, Phase.EXCHANGE, 2, 1, 4, Weight(7)),
]


def told(record: ConfigRecord) -> RecordDict:
    return RecordDict({PLAN: record})


def test_an_admission_travels() -> None:
    content = told(plan_record("{}", (A, H), ADMISSION))
    assert plan_of(content) == ("{}", (A, H))
    assert admission_of(content) == ADMISSION


def test_a_plan_without_a_ticket_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"no text d2d\.ticket"):
        admission_of(told(plan_record("{}", (A,))))


Change = Callable[[ConfigRecord], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.__setitem__("ticket", "{}"),
        lambda r: r.__setitem__("allowed", "["),
        lambda r: r.__setitem__("allowed", "[]"),
        lambda r: r.__setitem__("allowed", "{}"),
        lambda r: r.__setitem__("allowed", '{"layout":{},"examples":{"x":1},"digests":{}}'),
        lambda r: r.__setitem__("allowed", '{"layout":{},"examples":{},"digests":{"robot":""}}'),
        lambda r: r.__setitem__("deadline_s", 0.0),
        lambda r: r.__setitem__("deadline_s", "soon"),
        lambda r: r.pop("deadline_s"),
    ],
)
def test_a_damaged_admission_is_refused(change: Change) -> None:
    record = plan_record("{}", (A,), ADMISSION)
    change(record)
    with pytest.raises(ProtocolError):
        admission_of(told(record))


def test_what_was_sent_is_told() -> None:
    content = RecordDict({SENT: sent_record(3, ROWS)})
    assert sent_of(content, 3, 1) == tuple(ROWS)
    assert sent_of(RecordDict(), 3, 1) == ()


def changed(**fields: object) -> list[Transfer]:
    return [dataclasses.replace(ROWS[0], **fields)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "rows",
    [
        changed(src="device/2"),
        changed(src="edge/1"),
        changed(dst="edge/0"),
        changed(dst="device/1"),
        changed(dst="nowhere"),
        changed(phase=Phase.UP),
        changed(link=LinkClass.UPLINK),
        changed(sizes=(1.5,)),
        changed(sizes=(True,)),
        changed(modules=("robot/a",)),
        changed(step=0.5),
    ],
)
def test_what_cannot_have_been_sent_is_refused(rows: list[Transfer]) -> None:
    with pytest.raises(ProtocolError):
        sent_of(RecordDict({SENT: ConfigRecord({"line": to_line(3, rows)})}), 3, 1)


@pytest.mark.parametrize(
    "line", ["", "{}", '{"t":3,"modules":[],"transfers":[[]]}', to_line(4, [])]
)
def test_a_report_of_another_round_or_of_nothing_is_refused(line: str) -> None:
    with pytest.raises(ProtocolError):
        sent_of(RecordDict({SENT: ConfigRecord({"line": line})}), 3, 1)


@pytest.mark.parametrize("run", [1, 2**63])
def test_a_letter_weighs_the_same_written_dry_and_in_every_run(run: int) -> None:
    parcels = [Parcel.of(update_of(1), 1), Parcel.of(update_of(2, (H,)), 2)]
    envelope = Envelope(run, 3, FIRST, 1, 0)
    real = Writer().letter(envelope, parcels, bytes(range(32)))
    dry = Writer(dry=True).letter(envelope._replace(run=5), parcels)
    assert weigh_letter(dry) == weigh_letter(real)
    weight = weigh_letter(real)
    tensors = sum(a.nbytes for p in parcels for s in p.update.state.values() for a in s.values())
    assert weight.bytes == tensors == real.tensor_bytes
    assert weight.bytes + weight.header_bytes == sum(
        (len(real.header), len(real.seal), real.payload_bytes)
    )
    assert weight.modules == ("adapter/a", "head/h", "prompt/p")
    assert weight.sizes == tuple(
        sum(a.nbytes for p in parcels for a in p.update.state.get(key, {}).values())
        for key in real.modules
    )


def test_an_upload_is_what_was_asked_for_and_has_mass() -> None:
    update = update_of(1, (A, H))
    idle = ModularUpdate(update.state, {A: 0.0, H: 2.0})
    assert set(own_upload(update, [A]).state) == {A}
    assert set(own_upload(idle, [A, H]).state) == {H}
