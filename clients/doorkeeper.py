"""The gRPC service of a peer: reads, checks and refuses messages."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import grpc.aio

from clients.inbox import Inbox, Limits, Room
from hffm_flower.d2d import Parcel
from hffm_flower.rpc import exchange_pb2 as pb
from hffm_flower.rpc.codec import (
    Envelope,
    Refused,
    Verdict,
    check_header,
    parse_header,
    read_parcels,
)
from hffm_flower.rpc.exchange_pb2_grpc import PeerExchangeServicer
from hffm_flower.rpc.tickets import is_sealed

_log = logging.getLogger(__name__)

Chunks = AsyncIterator[pb.Chunk]


class Doorkeeper(PeerExchangeServicer):
    """Passes checked messages on to the inbox of the round that is played.

    Attributes:
        inbox: Of the round that is played, if any.
        room: Payload bytes held.
        refused: How many messages were refused, by verdict.
    """

    def __init__(self, index: int, limits: Limits) -> None:
        self.inbox: Inbox | None = None
        self.room = Room()
        self.refused: Counter[Verdict] = Counter()
        self._index = index
        self._limits = limits
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="peers-decode")

    async def Push(  # noqa: N802
        self, requests: Chunks, context: grpc.aio.ServicerContext[pb.Chunk, pb.Receipt]
    ) -> pb.Receipt:
        """Take one message, or say why not."""
        try:
            await self._receive(requests)
        except Refused as error:
            self.refused[error.verdict] += 1
            _log.info("device %d refused a message: %s", self._index, error)
            return pb.Receipt(verdict=error.verdict.name, detail=error.detail)
        return pb.Receipt(verdict=pb.ACCEPTED)

    def close(self) -> None:
        """Wait for the message that is being decoded."""
        self._decoder.shutdown()

    async def _receive(self, requests: Chunks) -> None:
        first = await self._next(requests)
        if first is None or first.WhichOneof("part") != "opening":
            raise Refused(Verdict.MALFORMED, "the first chunk is no opening")
        header, envelope = parse_header(first.opening)
        inbox = self._addressed(envelope, first.opening)
        check_header(header, inbox.allowed, max_bytes=self._limits.message_bytes)
        async with inbox.admit(envelope, header.size) as place:
            place.parcels = await self._decode(
                await self._payload(requests, header.size), header, inbox
            )

    def _addressed(self, envelope: Envelope, opening: pb.Opening) -> Inbox:
        """The inbox that the message is for, if its sender is whom it says."""
        inbox = self.inbox
        if inbox is None:
            raise Refused(Verdict.NOT_READY, f"device {self._index} plays no round")
        ticket = inbox.ticket
        if envelope.run != ticket.run:
            raise Refused(Verdict.WRONG_RUN, f"run {envelope.run} is not played here")
        if envelope.t > ticket.t:
            raise Refused(Verdict.NOT_READY, f"t = {envelope.t} comes after {ticket.t}")
        if envelope.t < ticket.t:
            raise Refused(Verdict.WRONG_ROUND, f"t = {envelope.t} is over; this is {ticket.t}")
        if envelope.dst != self._index:
            raise Refused(Verdict.UNAUTHORISED, f"a message for device {envelope.dst}")
        seat = ticket.seats.get(envelope.src)
        if seat is None:
            raise Refused(Verdict.UNAUTHORISED, f"device {envelope.src} is not in the roster")
        if not is_sealed(seat.key, opening.header, opening.seal):
            raise Refused(Verdict.UNAUTHORISED, f"not sealed by device {envelope.src}")
        return inbox

    async def _payload(self, requests: Chunks, size: int) -> bytes:
        chunks: list[bytes] = []
        missing = size
        while (chunk := await self._next(requests)) is not None:
            if chunk.WhichOneof("part") != "data" or not chunk.data:
                raise Refused(Verdict.MALFORMED, "a chunk without data")
            missing -= len(chunk.data)
            if missing < 0:
                raise Refused(Verdict.OVERSIZE, f"more than the {size} bytes announced")
            chunks.append(chunk.data)
        if missing:
            raise Refused(Verdict.TRUNCATED, f"{missing} of {size} bytes did not come")
        return b"".join(chunks)

    async def _decode(self, payload: bytes, header: pb.Header, inbox: Inbox) -> tuple[Parcel, ...]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._decoder, read_parcels, header, payload, inbox.allowed
        )

    async def _next(self, requests: Chunks) -> pb.Chunk | None:
        try:
            async with asyncio.timeout(self._limits.stall_s):
                return await anext(requests, None)
        except TimeoutError:
            raise Refused(Verdict.TRUNCATED, f"nothing came for {self._limits.stall_s} s") from None
