"""Exchanges that fail as `hffm_flower.d2d.Fault` says, or send what nobody takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence

from clients.outbox import Outbox, Transmission
from clients.peers import PeerExchange
from hffm_flower.d2d import Fault, Parcel
from hffm_flower.rpc import exchange_pb2 as pb
from hffm_flower.rpc.codec import Allowed, Turn
from hffm_flower.rpc.letters import Letter
from hffm_flower.rpc.reactor import Reactor
from hffm_flower.rpc.tickets import Ticket, seal


class Gone(Exception):
    """The device died."""


class _SlowOutbox(Outbox):
    async def send(self, turn: Turn, dst: int, letter: Letter, *, limit: float) -> Transmission:
        loop = asyncio.get_running_loop()
        if turn.phase == pb.UP:
            await asyncio.sleep(limit - loop.time())
            limit = loop.time() + 0.2
        return await super().send(turn, dst, letter, limit=limit)


class _TwiceOutbox(Outbox):
    async def send(self, turn: Turn, dst: int, letter: Letter, *, limit: float) -> Transmission:
        first = await super().send(turn, dst, letter, limit=limit)
        if turn.phase == pb.UP:
            return await super().send(turn, dst, letter, limit=limit)
        return first


Spoil = Callable[[Letter, bytes], Letter]
"""Makes another letter of a good one, given the pair's key."""


class _CorruptLetter(Letter):
    def frames(self) -> Iterator[tuple[bytes, int]]:
        for frame, payload_bytes in super().frames():
            spoilt = frame[:-1] + bytes([frame[-1] ^ 1]) if payload_bytes else frame
            yield spoilt, payload_bytes


def corrupt(letter: Letter, key: bytes) -> Letter:
    """A bit of every chunk is another one."""
    return _CorruptLetter(letter.header, letter.seal, letter.files, letter.modules)


def retold(change: Callable[[pb.Header], None]) -> Spoil:
    """Another header, well sealed."""

    def spoil(letter: Letter, key: bytes) -> Letter:
        header = pb.Header.FromString(letter.header)
        change(header)
        raw = header.SerializeToString(deterministic=True)
        return Letter(raw, seal(key, raw), letter.files, letter.modules)

    return spoil


def _last_round(header: pb.Header) -> None:
    header.t -= 1


def _next_round(header: pb.Header) -> None:
    header.t += 1


def _huge(header: pb.Header) -> None:
    header.size = 2**40


SPOILT: Mapping[str, Spoil] = {
    "corrupt chunk": corrupt,
    "round before": retold(_last_round),
    "round after": retold(_next_round),
    "oversized": retold(_huge),
}


class _SpoilingOutbox(Outbox):
    def __init__(self, ticket: Ticket, spoil: Spoil) -> None:
        super().__init__(ticket, None)
        self._keys = {dst: seat.key for dst, seat in ticket.seats.items()}
        self._spoil = spoil

    async def send(self, turn: Turn, dst: int, letter: Letter, *, limit: float) -> Transmission:
        if turn.phase == pb.UP:
            letter = self._spoil(letter, self._keys[dst])
        return await super().send(turn, dst, letter, limit=limit)


class SpoilingExchange(PeerExchange):
    """An exchange of a device whose parcels nobody can take."""

    spoil: Spoil

    async def _open(self, ticket: Ticket, allowed: Allowed) -> None:
        await super()._open(ticket, allowed)
        self._outbox = _SpoilingOutbox(ticket, self.spoil)


class FaultyExchange(PeerExchange):
    """An exchange of a device with a fault; raises `Gone` where it dies.

    Args:
        index: The device.
        fault: What is wrong with it.
        reactor: As in `PeerExchange`.
        listen_on: As in `PeerExchange`.
        phase: In which the fault is.
    """

    def __init__(
        self,
        index: int,
        fault: Fault,
        reactor: Reactor,
        listen_on: str = "127.0.0.1:0",
        phase: int = pb.UP,
    ) -> None:
        self.fault, self.phase = fault, phase
        super().__init__(index, listen_on, insecure=True, reactor=reactor)

    async def _open(self, ticket: Ticket, allowed: Allowed) -> None:
        await super()._open(ticket, allowed)
        if self.fault == Fault.SLOW:
            self._outbox = _SlowOutbox(ticket, None)
        if self.fault == Fault.DUPLICATE:
            self._outbox = _TwiceOutbox(ticket, None)

    def _exchange(
        self,
        turn: Turn,
        sources: Sequence[int],
        messages: Mapping[int, tuple[Parcel, ...]],
        times: tuple[float, float],
    ) -> Iterator[tuple[int, tuple[Parcel, ...] | None]]:
        if turn.phase != self.phase:
            return super()._exchange(turn, sources, messages, times)
        if self.fault == Fault.DEAD_BEFORE:
            raise Gone
        if messages and self.fault in (Fault.DEAD_DURING, Fault.DEAD_AFTER):
            some = sorted(messages)
            if self.fault == Fault.DEAD_DURING:
                some = some[:1] if len(some) > 1 else []
            list(super()._exchange(turn, (), {dst: messages[dst] for dst in some}, times))
            raise Gone
        return super()._exchange(turn, sources, messages, times)
