"""The edge's tickets, and the rows that devices report."""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict

from hffm_flower.ledger import Ledger, Phase
from hffm_flower.modules import digest
from hffm_flower.payload import SENT, Weight, peer_transfer, sent_record
from hffm_flower.rpc.tickets import KEY_BYTES
from strategies.issuer import Issuer
from tests.support.memory import A, H
from tests.support.peers import state_of

ADDRESSES = {2: "x:2", 0: "x:0", 1: "", 3: "x:3"}


def test_participants_are_admitted_to_each_other_for_one_round() -> None:
    issuer = Issuer(ADDRESSES, 7)
    assert issuer.addresses == {0: "x:0", 2: "x:2", 3: "x:3"}
    state = state_of(0, (A, H))
    one, two = (issuer.admissions(t, {0: 5.0, 2: 8.0}, state, 60.0) for t in (1, 2))
    assert one.keys() == {0, 2}
    seat = one[0].ticket.seats[2]
    assert (seat.address, len(seat.key)) == ("x:2", KEY_BYTES)
    assert one[2].ticket.seats[0].key == seat.key
    assert two[0].ticket.seats[2].key != seat.key
    assert (one[0].ticket.run, one[0].ticket.t, one[0].ticket.index) == (7, 1, 0)
    assert one[0].allowed.examples == {0: 5.0, 2: 8.0}
    assert one[0].digests == {k: digest(s) for k, s in state.items()}
    assert one[0].deadline_s == 60.0
    other = Issuer(ADDRESSES, 7).admissions(1, {0: 5.0, 2: 8.0}, state, 60.0)
    assert other[0].ticket.seats[2].key != seat.key


def test_reported_rows_are_entered_and_impossible_ones_are_not() -> None:
    ledger = Ledger()
    issuer = Issuer(ADDRESSES, 7, ledger=ledger)
    weight = Weight(100, ("adapter/a",), (8,))
    rows = [peer_transfer(3, Phase.EXCHANGE, 0, 2, dst, weight) for dst in (0, 9)]
    content = RecordDict({SENT: sent_record(3, rows)})
    issuer.enter(content, 3, 2, [0, 2])
    assert ledger.rows == (rows[0],)
    issuer.enter(content, 4, 2, [0, 2])
    issuer.enter(content, 3, 0, [0, 2])
    issuer.enter(RecordDict({SENT: ConfigRecord({"line": "?"})}), 3, 2, [0, 2])
    issuer.enter(RecordDict(), 3, 2, [0, 2])
    assert ledger.rows == (rows[0],)
