"""Exchanges that fail as `hffm_flower.d2d.Fault` says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

from clients.outbox import Outbox, Transmission
from clients.peers import PeerExchange
from hffm_flower.d2d import Fault, Parcel
from hffm_flower.rpc.codec import Allowed, Letter, Turn
from hffm_flower.rpc.reactor import Reactor
from hffm_flower.rpc.tickets import Ticket


class Gone(Exception):
    """The device died."""


class _SlowOutbox(Outbox):
    async def send(self, turn: Turn, dst: int, letter: Letter, *, limit: float) -> Transmission:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(limit - loop.time())
        return await super().send(turn, dst, letter, limit=loop.time() + 0.2)


class _TwiceOutbox(Outbox):
    async def send(self, turn: Turn, dst: int, letter: Letter, *, limit: float) -> Transmission:
        await super().send(turn, dst, letter, limit=limit)
        return await super().send(turn, dst, letter, limit=limit)


class FaultyExchange(PeerExchange):
    """An exchange of a device with a fault; raises `Gone` where it dies."""

    def __init__(self, index: int, fault: Fault, reactor: Reactor) -> None:
        self.fault = fault
        super().__init__(index, "127.0.0.1:0", insecure=True, reactor=reactor)

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
        if self.fault == Fault.DEAD_BEFORE:
            raise Gone
        if messages and self.fault in (Fault.DEAD_DURING, Fault.DEAD_AFTER):
            some = sorted(messages)
            if self.fault == Fault.DEAD_DURING:
                some = some[:1] if len(some) > 1 else []
            list(super()._exchange(turn, (), {dst: messages[dst] for dst in some}, times))
            raise Gone
        return super()._exchange(turn, sources, messages, times)
