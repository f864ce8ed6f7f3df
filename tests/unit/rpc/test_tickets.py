from __future__ import annotations

import json

import pytest

from hffm_flower.errors import ProtocolError
from hffm_flower.rpc.tickets import Seat, Ticket, is_sealed, issue, seal

SECRET = bytes(range(32))
ADDRESSES = {0: "a:1", 3: "b:2", 5: "c:3"}


def test_both_of_a_pair_have_the_same_key_and_nobody_else() -> None:
    given = issue(SECRET, ADDRESSES, run=2**63 + 1, t=4)
    assert {i: sorted(t.seats) for i, t in given.items()} == {0: [3, 5], 3: [0, 5], 5: [0, 3]}
    pairs = [given[i].seats[j].key for i in given for j in given if i < j]
    assert pairs == [given[j].seats[i].key for i in given for j in given if i < j]
    assert len(set(pairs)) == 3
    assert [s.address for s in given[3].seats.values()] == ["a:1", "c:3"]


@pytest.mark.parametrize(
    "other",
    [
        issue(SECRET, ADDRESSES, run=1, t=5),
        issue(SECRET, ADDRESSES, run=2, t=4),
        issue(SECRET[::-1], ADDRESSES, run=1, t=4),
    ],
    ids=["t", "run", "secret"],
)
def test_a_key_holds_for_one_run_and_round_of_one_edge(other: dict[int, Ticket]) -> None:
    given = issue(SECRET, ADDRESSES, run=1, t=4)
    assert given[0].seats[3].key != other[0].seats[3].key


def test_a_ticket_survives_its_text_and_does_not_show_its_keys() -> None:
    ticket = issue(SECRET, ADDRESSES, run=2**64 - 1, t=4)[3]
    assert Ticket.from_json(ticket.to_json()) == ticket
    assert ticket.seats[0].key.hex() not in repr(ticket)
    assert str(ticket.seats[0].key) not in repr(ticket)


def test_a_seal_fits_one_header_and_one_key() -> None:
    key, other = bytes(32), bytes([1] * 32)
    assert is_sealed(key, b"header", seal(key, b"header"))
    assert not is_sealed(key, b"Header", seal(key, b"header"))
    assert not is_sealed(other, b"header", seal(key, b"header"))
    assert not is_sealed(key, b"header", b"")


GOOD = {"run": 1, "t": 1, "index": 0, "seats": {"1": ["a:1", "00" * 32]}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps(GOOD | {"run": -1}),
        json.dumps(GOOD | {"t": 2**32}),
        json.dumps(GOOD | {"t": None}),
        json.dumps(GOOD | {"seats": {"0": ["a:1", "00" * 32]}}),
        json.dumps(GOOD | {"seats": {"1": ["a:1", "00" * 31]}}),
        json.dumps(GOOD | {"seats": {"1": ["", "00" * 32]}}),
        json.dumps(GOOD | {"seats": {"1": ["a:1"]}}),
        json.dumps(GOOD | {"seats": {"x": ["a:1", "00" * 32]}}),
        json.dumps(GOOD | {"seats": {"1": ["a:1", "zz"]}}),
        json.dumps(GOOD | {"seats": 3}),
    ],
)
def test_what_is_no_ticket_is_refused_without_repeating_it(text: str) -> None:
    assert Ticket.from_json(json.dumps(GOOD)).seats == {1: Seat("a:1", bytes(32))}
    with pytest.raises(ProtocolError) as caught:
        Ticket.from_json(text)
    assert "00" * 31 not in str(caught.value)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ProtocolError, match="31 bytes"):
        issue(bytes(31), ADDRESSES, run=1, t=1)
