"""A device among its peers: plays its part of a D2D plan over gRPC.

The caller is ordinary code, such as a ClientApp's train call: the server and all sending run
on a `Reactor`. Every wait ends by the deadline of the call, whatever the peers do; what did not
arrive leaves the result not intact, and the edge asks for it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import MappingProxyType
from typing import Final, Self

import grpc.aio

from clients.doorkeeper import Doorkeeper
from clients.inbox import Inbox, Limits
from clients.outbox import Outbox, Transmission
from clients.pace import Pace
from hffm_flower.d2d import EDGE, Gathering, Parcel, Plan, outgoing
from hffm_flower.errors import ConfigError, PeerError
from hffm_flower.modules import ModularState, ModularUpdate, ModuleKey, ModuleState, digest
from hffm_flower.rpc import exchange_pb2 as pb
from hffm_flower.rpc.channel import Credentials, listen, open_server
from hffm_flower.rpc.codec import Allowed, Envelope, Turn, Verdict
from hffm_flower.rpc.letters import Writer
from hffm_flower.rpc.reactor import Reactor
from hffm_flower.rpc.tickets import Ticket

_log = logging.getLogger(__name__)

GOODBYE_S: Final = 2.0
"""How long a server that closes lets receipts go out."""


class PeerExchange:
    """One device's channel to its peers; a context manager.

    Args:
        index: The device.
        listen_on: ``host:port``; port 0 takes a free one.
        credentials: Mutual TLS.
        insecure: Speak in the clear where there are no credentials; for tests and loopback.
        limits: Bounds of what is taken in.
        reactor: To be shared by several exchanges of one process; None: one of its own.

    Raises:
        ConfigError: Neither credentials nor ``insecure``, or the address cannot be bound.
    """

    def __init__(
        self,
        index: int,
        listen_on: str,
        *,
        credentials: Credentials | None = None,
        insecure: bool = False,
        limits: Limits | None = None,
        reactor: Reactor | None = None,
    ) -> None:
        if credentials is None and not insecure:
            raise ConfigError("peers need TLS credentials, unless insecure is asked for")
        if credentials is not None and insecure:
            raise ConfigError("peers cannot have TLS credentials and be insecure")
        self.index = index
        self.sent: list[Transmission] = []
        """Messages of the round that is open."""
        self.missed: list[tuple[Turn, int]] = []
        """Messages that did not come in it."""
        self.ready_s: dict[Turn, float] = {}
        """When each of its steps began here, by `time.monotonic` [s]."""
        self._credentials = credentials
        self._limits = limits or Limits()
        self._door = Doorkeeper(index, self._limits)
        self._outbox: Outbox | None = None
        self._unreached: dict[tuple[int, int], set[int]] = {}
        self._reactor = reactor or Reactor()
        self._owns_reactor = reactor is None
        self._server: grpc.aio.Server | None = None
        try:
            self.port = self._reactor.run(self._serve(listen_on))
        except BaseException:
            self.close()
            raise

    def open(self, ticket: Ticket, allowed: Allowed) -> None:
        """Take part in the edge round of ``ticket``; ends the one before, and its records.

        Raises:
            PeerError: The ticket is another device's.
        """
        if ticket.index != self.index:
            raise PeerError(f"device {self.index} was given the ticket of {ticket.index}")
        self._reactor.run(self._open(ticket, allowed))
        self._unreached.clear()
        self.sent.clear()
        self.missed.clear()
        self.ready_s.clear()

    def play(
        self, plan: Plan, segment: int, held: Sequence[Parcel], *, deadline_s: float
    ) -> tuple[Parcel, ...]:
        """Play the plan's steps behind ``segment``; returns what this device then holds.

        Gives what `hffm_flower.d2d.play` gives, bit for bit. Returns by ``deadline_s``, and a
        little for what is being computed; what did not come leaves it not intact.

        Raises:
            PeerError: No round is open, or the plan names a device that is not in it.
        """
        now = tuple(p for p in held if p.matters())
        pace = Pace(time.monotonic(), deadline_s, max(1, len(plan.steps)))
        for number, step in enumerate(plan.steps):
            turn = Turn(pb.UP, segment, number)
            kept, messages = outgoing(now, step, self.index, summing=plan.summing)
            sources = step.sources(self.index)
            gathering = Gathering(kept, step, self.index, summing=plan.summing)
            times = pace.door(number), pace.limit(number)
            for src, parcels in self._exchange(turn, sources, messages, times):
                gathering.add(src, parcels)
            now = gathering.result()
        return now

    def deliver(
        self,
        plan: Plan,
        modules: Mapping[ModuleKey, ModuleState],
        *,
        deadline_s: float,
        digests: Mapping[ModuleKey, str] = MappingProxyType({}),
    ) -> dict[ModuleKey, ModuleState]:
        """Pass published modules on as `plan.down` says, before training.

        Args:
            plan: Whose deliveries are made.
            modules: What this device has already, or has from the edge.
            deadline_s: For all deliveries together.
            digests: `hffm_flower.modules.digest` of published modules, as the edge says them;
                a module that a peer delivers with another one is dropped.

        Returns:
            ``modules`` and what came; what is missing is to be asked of the edge.
        """
        have = dict(modules)
        order = sorted({hop.step for hop in plan.down})
        pace = Pace(time.monotonic(), deadline_s, max(1, len(order)))
        for place, number in enumerate(order):
            wanted: dict[int, set[ModuleKey]] = {}
            handed: dict[int, set[ModuleKey]] = {}
            for hop in plan.down:
                if hop.step == number and hop.dst == self.index and hop.src != EDGE:
                    wanted.setdefault(hop.src, set()).update(hop.keys)
                if hop.step == number and hop.src == self.index:
                    handed.setdefault(hop.dst, set()).update(hop.keys)
            messages = {dst: (_published(have, handed[dst]),) for dst in sorted(handed)}
            times = pace.door(place), pace.limit(place)
            turn = Turn(pb.DOWN, 0, number)
            for src, parcels in self._exchange(turn, sorted(wanted), messages, times):
                for parcel in parcels or ():
                    came = parcel.update.only(wanted[src]).state
                    have |= self._genuine(came, digests, src)
        return have

    @property
    def peak_bytes(self) -> int:
        """Most payload bytes that were held at once."""
        return self._door.room.peak

    @property
    def refused(self) -> Mapping[Verdict, int]:
        """How many messages were refused so far, by verdict."""
        return Counter(self._door.refused)

    def close(self) -> None:
        """End the round, let last receipts go out, free the port."""
        if self._server is not None:
            self._reactor.run(self._stop())
            self._server = None
            self._door.close()
        if self._owns_reactor:
            self._reactor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exchange(
        self,
        turn: Turn,
        sources: Sequence[int],
        messages: Mapping[int, tuple[Parcel, ...]],
        times: tuple[float, float],
    ) -> Iterator[tuple[int, tuple[Parcel, ...] | None]]:
        """Send the messages of a step, and yield those of its sources, in their order."""
        inbox, outbox = self._round()
        if not sources and not messages:
            return
        door, limit = times
        seats = inbox.ticket.seats
        if strangers := sorted({*sources, *messages} - seats.keys()):
            raise PeerError(f"{turn} names devices {strangers}, which have no seat in the round")
        self._reactor.run(inbox.begin(turn, sources))
        self.ready_s[turn] = time.monotonic()
        unreached = self._unreached.setdefault(turn[:2], set())
        writer = Writer()
        sending: list[Future[Transmission]] = []
        try:
            for dst in sorted(messages.keys() - unreached):
                envelope = Envelope(inbox.ticket.run, inbox.ticket.t, turn, self.index, dst)
                letter = writer.letter(envelope, messages[dst], seats[dst].key)
                sending.append(self._reactor.start(outbox.send(turn, dst, letter, limit=limit)))
            for src in sources:
                parcels = self._reactor.run(inbox.take(src, door=door, limit=limit))
                if parcels is None:
                    self.missed.append((turn, src))
                    _log.info("device %d goes on without %d in %s", self.index, src, turn)
                yield src, parcels
            done = [future.result() for future in sending]
        finally:
            for future in sending:
                future.cancel()
        self.sent += done
        unreached.update(t.dst for t in done if not t.arrived)

    def _round(self) -> tuple[Inbox, Outbox]:
        if self._door.inbox is None or self._outbox is None:
            raise PeerError(f"device {self.index} has opened no round")
        return self._door.inbox, self._outbox

    def _genuine(
        self, state: ModularState, digests: Mapping[ModuleKey, str], src: int
    ) -> dict[ModuleKey, ModuleState]:
        false = [k for k in state if k in digests and digest(state[k]) != digests[k]]
        if false:
            _log.warning("device %d was given false %s by %d", self.index, false, src)
        return {k: s for k, s in state.items() if k not in false}

    async def _serve(self, address: str) -> int:
        server = open_server(self._limits.streams, self._limits.window_bytes)
        self._door.serve(server)
        port = listen(server, address, self._credentials)
        await server.start()
        self._server = server
        return port

    async def _open(self, ticket: Ticket, allowed: Allowed) -> None:
        await self._end()
        self._door.open(Inbox(ticket, allowed, self._limits, self._door.room))
        self._outbox = Outbox(ticket, self._credentials)

    async def _end(self) -> None:
        if self._door.inbox is not None:
            await self._door.inbox.close()
            self._door.inbox = None
        if self._outbox is not None:
            await self._outbox.close()
            self._outbox = None

    async def _stop(self) -> None:
        await self._end()
        if self._server is not None:
            await self._server.stop(GOODBYE_S)


def _published(have: Mapping[ModuleKey, ModuleState], keys: Collection[ModuleKey]) -> Parcel:
    """Modules as they travel down: with no mass, for nobody trained them."""
    state = {key: have[key] for key in sorted(keys) if key in have}
    return Parcel(ModularUpdate.of(state, 0.0), {k: {} for k in state}, len(state) == len(keys))
