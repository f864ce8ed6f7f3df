"""Every way in which a message may be wrong is refused over the wire, with a word of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pytest

from clients.inbox import Limits
from clients.peers import PeerExchange
from hffm_flower.d2d import Parcel
from hffm_flower.errors import PeerError
from hffm_flower.modules import ModularUpdate, ModuleKey
from hffm_flower.rpc import codec
from hffm_flower.rpc import exchange_pb2 as pb
from hffm_flower.rpc.codec import Turn, Verdict
from hffm_flower.rpc.letters import Letter
from hffm_flower.rpc.reactor import Reactor
from hffm_flower.rpc.tickets import Ticket, seal, tag_of
from tests.support.memory import A
from tests.support.peers import (
    FIRST,
    ROUND,
    RUN,
    Peers,
    chunks_of,
    letter,
    peers,
    push,
    star,
    state_of,
    tickets,
    update_of,
)  # fmt: skip

OWN = Parcel.of(update_of(1), 1)
LIMITS = Limits(message_bytes=4096, buffered_bytes=3 * 4096, stall_s=0.3)
Chunks = Iterable[pb.Chunk | float]
Wrong = Callable[[Ticket], Chunks]


def good(ticket: Ticket, *parcels: Parcel, turn: Turn = FIRST) -> list[pb.Chunk]:
    return chunks_of(letter(ticket, 0, parcels or (OWN,), turn=turn))


def sealed(ticket: Ticket, change: Callable[[pb.Header], object]) -> list[pb.Chunk]:
    """A message whose header was changed by someone who has the key."""
    message = letter(ticket, 0, (OWN,))
    header = pb.Header.FromString(message.header)
    change(header)
    raw = header.SerializeToString()
    return chunks_of(Letter(raw, seal(ticket.seats[0].key, raw), message.files, ()))


def resealed(ticket: Ticket, **changes: Any) -> list[pb.Chunk]:
    return sealed(ticket, lambda header: header.MergeFrom(pb.Header(**changes)))


def behind(devices: dict[int, float]) -> Parcel:
    state = state_of(1, (A,))
    return Parcel(ModularUpdate.of(state, math.fsum(devices.values())), {A: devices})


def of_state(key: ModuleKey, *values: float) -> Parcel:
    array = np.array(values, np.float32)
    return Parcel.of(ModularUpdate.of({key: {"w": array}}, 5.0), 1)


def other_payload(ticket: Ticket) -> list[pb.Chunk]:
    opening, data = good(ticket)
    flipped = bytearray(data.data)
    flipped[-1] ^= 1
    return [opening, pb.Chunk(data=bytes(flipped))]


def cut(ticket: Ticket) -> list[pb.Chunk]:
    opening, data = good(ticket)
    return [opening, pb.Chunk(data=data.data[:-1])]


def stalled(ticket: Ticket) -> Chunks:
    opening, data = good(ticket)
    return [opening, pb.Chunk(data=data.data[:-1]), 5.0, data]


def no_safetensors(ticket: Ticket) -> list[pb.Chunk]:
    junk = b"\x00" * 64

    def change(header: pb.Header) -> None:
        header.size = header.parcels[0].size = len(junk)
        header.tag = tag_of(ticket.seats[0].key, header.nonce, [junk])

    return [sealed(ticket, change)[0], pb.Chunk(data=junk)]


def stranger(ticket: Ticket) -> list[pb.Chunk]:
    """Device 9 has a ticket of the same run and t, but is in another cluster."""
    own = tickets({0: "x:1", 9: "x:2"})[9]
    return good(own)


def forged(ticket: Ticket) -> list[pb.Chunk]:
    """Device 2, a member, says it is device 1."""
    key = tickets({0: "x:1", 1: "x:2", 2: "x:3"})[2].seats[0].key
    opening = good(ticket)[0].opening
    return [pb.Chunk(opening=pb.Opening(header=opening.header, seal=seal(key, opening.header)))]


def uninvited(ticket: Ticket) -> list[pb.Chunk]:
    """Device 2 is a member, but has nothing to send in this step."""
    return chunks_of(letter(tickets({0: "x:1", 2: "x:3"})[2], 0))


def swapped(ticket: Ticket) -> list[pb.Chunk]:
    """A recorded message for device 2 is played back to device 0."""
    return chunks_of(letter(ticket, 2, (OWN,)))


def other_round(run: int, t: int) -> Wrong:
    return lambda _: good(tickets({0: "x:1", 1: "x:2"}, run=run, t=t)[1])


B = ModuleKey.parse("adapter/unknown")
WRONG: dict[str, tuple[Verdict, Wrong]] = {
    "wrong checksum": (Verdict.CHECKSUM, other_payload),
    "wrong run": (Verdict.WRONG_RUN, other_round(RUN + 1, ROUND)),
    "wrong t": (Verdict.WRONG_ROUND, other_round(RUN, ROUND - 1)),
    "t to come": (Verdict.NOT_READY, other_round(RUN, ROUND + 1)),
    "unknown key": (Verdict.UNKNOWN_MODULE, lambda t: good(t, of_state(B, 1.0))),
    "other shape": (Verdict.UNKNOWN_MODULE, lambda t: good(t, of_state(A, 1.0, 2.0))),
    "oversize, announced": (Verdict.OVERSIZE, lambda t: resealed(t, size=2**40)),
    "oversize, sent": (Verdict.OVERSIZE, lambda t: [*good(t), pb.Chunk(data=b"more")]),
    "truncated": (Verdict.TRUNCATED, cut),
    "stalled": (Verdict.TRUNCATED, stalled),
    "empty": (Verdict.MALFORMED, lambda t: []),
    "no peer of the cluster": (Verdict.UNAUTHORISED, stranger),
    "another peer's name": (Verdict.UNAUTHORISED, forged),
    "for somebody else": (Verdict.UNAUTHORISED, swapped),
    "header altered": (
        Verdict.UNAUTHORISED,
        lambda t: [pb.Chunk(opening=pb.Opening(header=good(t)[0].opening.header, seal=b"?"))],
    ),
    "unknown contributor": (Verdict.UNAUTHORISED, lambda t: good(t, behind({1: 1.0, 77: 1.0}))),
    "too much mass": (Verdict.OVERWEIGHT, lambda t: good(t, behind({1: 1e6}))),
    "negative mass": (
        Verdict.MALFORMED,
        lambda t: sealed(t, lambda h: setattr(h.parcels[0].modules[0], "mass", -1.0)),
    ),
    "masses that do not add up": (
        Verdict.MALFORMED,
        lambda t: sealed(t, lambda h: setattr(h.parcels[0].modules[0], "mass", 999.0)),
    ),
    "a module twice": (
        Verdict.MALFORMED,
        lambda t: sealed(t, lambda h: h.parcels[0].modules.append(h.parcels[0].modules[0])),
    ),
    "a contributor twice": (
        Verdict.MALFORMED,
        lambda t: sealed(t, lambda h: h.parcels[0].modules[0].devices.append(1)),
    ),
    "sizes that do not add up": (
        Verdict.MALFORMED,
        lambda t: sealed(t, lambda h: setattr(h.parcels[0], "size", 1)),
    ),
    "modules that the payload lacks": (
        Verdict.MALFORMED,
        lambda t: sealed(t, lambda h: h.parcels[0].modules.pop()),
    ),
    "not finite": (
        Verdict.MALFORMED,
        lambda t: good(t, of_state(A, *[math.nan] * 40)),
    ),
    "no safetensors": (Verdict.MALFORMED, no_safetensors),
    "no header": (
        Verdict.MALFORMED,
        lambda t: [pb.Chunk(opening=pb.Opening(header=b"\xff\xff\xff", seal=b""))],
    ),
    "no opening": (Verdict.MALFORMED, lambda t: good(t)[1:]),
    "two openings": (Verdict.MALFORMED, lambda t: [good(t)[0], *good(t)]),
    "an empty chunk": (Verdict.MALFORMED, lambda t: [good(t)[0], pb.Chunk(data=b"")]),
    "wrong protocol": (
        Verdict.WRONG_PROTOCOL,
        lambda t: resealed(t, protocol=codec.PROTOCOL + 1),
    ),
    "not in the plan": (Verdict.UNEXPECTED, uninvited),
    "step that is over": (Verdict.LATE, lambda t: good(t, turn=Turn(pb.DOWN, 0, 0))),
}  # fmt: skip


@pytest.fixture(scope="module")
def open_step() -> Iterator[Peers]:
    """Device 0 waits for device 1 in the first step until the tests are over."""
    with peers(range(3), LIMITS) as cluster, ThreadPoolExecutor(1) as pool:
        playing = pool.submit(cluster[0].play, star([1]), 0, [], deadline_s=30.0)
        assert push(
            cluster.reactor, cluster.addresses[0], WRONG["truncated"][1](cluster.tickets[1])
        )
        yield cluster
        assert push(cluster.reactor, cluster.addresses[0], good(cluster.tickets[1])) == 0
        (held,) = playing.result()
        assert held.intact
        assert held.behind[A] == {1: OWN.update.mass[A]}
        assert cluster[0].peak_bytes <= LIMITS.buffered_bytes


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_message_is_refused_with_its_own_verdict(open_step: Peers, name: str) -> None:
    verdict, wrong = WRONG[name]
    before = open_step[0].refused.get(verdict, 0)
    chunks = wrong(open_step.tickets[1])
    assert push(open_step.reactor, open_step.addresses[0], chunks) == verdict
    assert open_step[0].refused[verdict] == before + 1


def test_a_message_that_comes_twice_counts_once() -> None:
    with peers(range(3)) as cluster, ThreadPoolExecutor(1) as pool:
        playing = pool.submit(cluster[0].play, star([1, 2]), 0, [], deadline_s=20.0)
        first = good(cluster.tickets[1])
        where = cluster.reactor, cluster.addresses[0]
        assert push(*where, first) == Verdict.ACCEPTED
        assert push(*where, first) == Verdict.DUPLICATE
        assert (
            push(*where, chunks_of(letter(cluster.tickets[2], 0, [Parcel.of(update_of(2), 2)])))
            == 0
        )
        (held,) = playing.result()
        assert push(*where, first) == Verdict.DUPLICATE
    assert held.behind[A] == {1: OWN.update.mass[A], 2: update_of(2).mass[A]}


def test_of_two_streams_at_once_one_is_taken() -> None:
    with peers(range(2)) as cluster, ThreadPoolExecutor(3) as pool:
        first = good(cluster.tickets[1])
        where = cluster.reactor, cluster.addresses[0]
        pushes = [pool.submit(push, *where, [first[0], 0.2, *first[1:]]) for _ in range(2)]
        (held,) = cluster[0].play(star([1]), 0, [], deadline_s=20.0)
        verdicts = sorted(p.result() for p in pushes)
    assert verdicts == [Verdict.ACCEPTED, Verdict.DUPLICATE]
    assert held.behind[A] == {1: OWN.update.mass[A]}


def test_nobody_is_let_in_while_no_round_is_open() -> None:
    with (
        Reactor() as reactor,
        PeerExchange(0, "127.0.0.1:0", insecure=True, reactor=reactor) as own,
    ):
        address = f"127.0.0.1:{own.port}"
        ticket = tickets({0: address, 1: "x:1"})[1]
        assert push(reactor, address, good(ticket)) == Verdict.NOT_READY
        with pytest.raises(PeerError, match="opened no round"):
            own.play(star([1]), 0, [], deadline_s=1.0)


def test_a_new_round_sends_the_old_one_away() -> None:
    with peers(range(2)) as cluster, ThreadPoolExecutor(1) as pool:
        where = cluster.reactor, cluster.addresses[0]
        waiting = pool.submit(push, *where, good(cluster.tickets[1]))
        until = time.monotonic() + 10
        while not cast(Any, cluster[0])._door.inbox._knocking:
            assert time.monotonic() < until
            time.sleep(0.01)
        cluster[0].open(tickets(cluster.addresses, t=ROUND + 1)[0], cluster.allowed)
        assert waiting.result() == Verdict.LATE
        assert push(*where, good(cluster.tickets[1])) == Verdict.WRONG_ROUND


def test_streams_that_say_nothing_do_not_keep_members_out() -> None:
    with peers(range(2), Limits(streams=2)) as cluster, ThreadPoolExecutor(2) as pool:
        where = cluster.reactor, cluster.addresses[0]
        silent = [pool.submit(push, *where, [60.0]) for _ in range(2)]
        time.sleep(0.3)
        held = cluster.play(star([1]), {i: update_of(i) for i in (0, 1)}, deadline_s=20.0)
        assert [s.result(timeout=20.0) for s in silent] == [Verdict.TRUNCATED] * 2
    assert held[0][0].intact


def test_who_has_opened_may_take_longer_for_the_rest() -> None:
    limits = Limits(opening_s=0.2, stall_s=5.0)
    with peers(range(2), limits) as cluster, ThreadPoolExecutor(1) as pool:
        playing = pool.submit(cluster[0].play, star([1]), 0, [], deadline_s=20.0)
        first, *rest = good(cluster.tickets[1])
        where = cluster.reactor, cluster.addresses[0]
        assert push(*where, [first, 0.6, *rest]) == Verdict.ACCEPTED
        assert push(*where, [0.6, first, *rest]) == Verdict.TRUNCATED
        assert playing.result()[0].intact
