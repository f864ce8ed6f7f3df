"""The receiving side of a peer: who may come in, when, and how many at once.

Messages of the step that is played are read while there is room; all others wait unread at
the door, held back by HTTP/2's flow control. The step's senders are used in the order of
their index, and room for one message is always kept for the one that is needed next: the
others can never shut it out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from typing import Final

from hffm_flower.d2d import Parcel
from hffm_flower.errors import ConfigError
from hffm_flower.rpc.codec import Allowed, Envelope, Refused, Turn, Verdict
from hffm_flower.rpc.tickets import Ticket

MIB: Final = 2**20
WIDEST: Final = 2 * MIB
"""A window wider than this makes nothing faster."""
BEFORE: Final = Turn(-1, 0, 0)
"""No step is being played yet."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what a peer takes in.

    Attributes:
        message_bytes: Largest payload of a message.
        buffered_bytes: Payloads held at once, read or being read; at least one message.
        streams: Messages that may wait or be read at once, the rest is sent away for now.
        opening_s: Who opens a stream must say so soon who he is.
        stall_s: A message that goes no further for so long is given up.
        knock_s: A message of a round that is not open yet waits so long for it.
    """

    message_bytes: int = 64 * MIB
    buffered_bytes: int = 256 * MIB
    streams: int = 256
    opening_s: float = 1.0
    stall_s: float = 10.0
    knock_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.message_bytes <= self.buffered_bytes:
            raise ConfigError(
                f"messages of {self.message_bytes} bytes do not fit in {self.buffered_bytes}"
            )
        if self.streams < 1 or not (min(self.opening_s, self.stall_s) > 0 and self.knock_s >= 0):
            raise ConfigError(
                f"{self.streams} streams, {self.opening_s} s, {self.stall_s} s and "
                f"{self.knock_s} s; all must be positive"
            )

    @property
    def window_bytes(self) -> int:
        """What gRPC may take of each message that waits: 64 of them fill the buffer again."""
        return max(MIB // 16, min(WIDEST, self.buffered_bytes // 64))


@dataclass(slots=True)
class Room:
    """Payload bytes in memory, now and at most so far."""

    used: int = 0
    peak: int = 0

    def add(self, size: int) -> None:
        self.used += size
        self.peak = max(self.peak, self.used)


@dataclass(slots=True)
class Place:
    """Where one message that was let in is put once it is whole."""

    parcels: tuple[Parcel, ...] | None = None


class Inbox:
    """Messages to one device in one edge round. Lives on the event loop.

    Args:
        ticket: Run, round and roster.
        allowed: What parcels may hold.
        limits: Bounds.
        room: Counts the bytes held.
    """

    def __init__(self, ticket: Ticket, allowed: Allowed, limits: Limits, room: Room) -> None:
        self.ticket = ticket
        self.allowed = allowed
        self._limits = limits
        self._room = room
        self._turn = BEFORE
        self._awaited: list[int] = []
        self._held: dict[int, tuple[int, tuple[Parcel, ...]]] = {}
        self._reading: set[tuple[Turn, int]] = set()
        self._accepted: set[tuple[Turn, int]] = set()
        self._lost: dict[tuple[int, int], set[int]] = {}
        self._knocking: Counter[tuple[Turn, int]] = Counter()
        self._closed = False
        self._changed = asyncio.Event()

    async def begin(self, turn: Turn, sources: Collection[int]) -> None:
        """Play ``turn``: let its senders in, and forget what came before."""
        self._clear()
        self._turn = turn
        self._awaited = sorted(set(sources) - self._missed(turn))
        self._tell()

    async def close(self) -> None:
        """Send everybody away."""
        self._clear()
        self._closed = True
        self._tell()

    async def take(self, src: int, *, door: float, limit: float) -> tuple[Parcel, ...] | None:
        """The parcels of ``src`` in this turn; None if they do not come.

        Args:
            src: A source of this turn; sources are taken in ascending order.
            door: Loop time until which it may turn up.
            limit: Loop time until which it must be done, having turned up in time.
        """
        if src not in self._awaited:
            return None
        here = (self._turn, src)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(door):
                await self._until(lambda: src in self._held)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(limit):
                await self._until(lambda: src in self._held or not self._knocking[here])
        self._awaited.remove(src)
        size, parcels = self._held.pop(src, (0, None))
        self._room.add(-size)
        if parcels is None:
            self._missed(self._turn).add(src)
        self._tell()
        return parcels

    @contextlib.asynccontextmanager
    async def admit(self, envelope: Envelope, size: int) -> AsyncIterator[Place]:
        """Wait for this message's turn and for room; keep what is put into the place.

        Raises:
            Refused: DUPLICATE, LATE or UNEXPECTED, before or while it is read.
        """
        turn, src = envelope.turn, envelope.src
        self._knocking[turn, src] += 1
        entered = kept = False
        try:
            await self._until(lambda: self._may_enter(turn, src, size))
            entered = True
            self._reading.add((turn, src))
            self._room.add(size)
            place = Place()
            yield place
            self._check_awaited(turn, src)
            if place.parcels is not None:
                self._held[src] = size, place.parcels
                self._accepted.add((turn, src))
                kept = True
        finally:
            if entered:
                self._reading.discard((turn, src))
            if entered and not kept:
                self._room.add(-size)
            self._knocking[turn, src] -= 1
            self._tell()

    def _may_enter(self, turn: Turn, src: int, size: int) -> bool:
        if not self._closed and turn > self._turn and (turn, src) not in self._accepted:
            return False
        self._check_awaited(turn, src)
        if (turn, src) in self._reading:  # an earlier try, which may yet fail
            return False
        spare = 0 if src == self._awaited[0] else self._limits.message_bytes
        return self._room.used + size + spare <= self._limits.buffered_bytes

    def _check_awaited(self, turn: Turn, src: int) -> None:
        if (turn, src) in self._accepted:
            raise Refused(Verdict.DUPLICATE, f"device {src}'s message of {turn} is here")
        if self._closed or turn < self._turn or src in self._missed(turn):
            raise Refused(Verdict.LATE, f"{turn} went on without device {src}")
        if src not in self._awaited:
            raise Refused(Verdict.UNEXPECTED, f"device {src} sends nothing in {turn}")

    def _missed(self, turn: Turn) -> set[int]:
        """Devices that missed a step of this phase and segment; they are not awaited again."""
        return self._lost.setdefault(turn[:2], set())

    def _clear(self) -> None:
        self._room.add(-sum(size for size, _ in self._held.values()))
        self._held.clear()
        self._awaited.clear()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
