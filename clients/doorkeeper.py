"""The gRPC service of a peer: reads, checks and refuses messages."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import grpc
import grpc.aio

from clients.inbox import Inbox, Limits, Room
from hffm_flower.rpc import exchange_pb2 as pb
from hffm_flower.rpc.buffers import Buffers
from hffm_flower.rpc.codec import (
    Envelope,
    Refused,
    Verdict,
    check_header,
    check_tag,
    parse_header,
    read_parcels,
    tag_for,
)
from hffm_flower.rpc.tickets import is_sealed
from hffm_flower.rpc.wire import SERVICE, Incoming, read_chunk

_log = logging.getLogger(__name__)

Chunks = AsyncIterator[Incoming]
END: Final = object()
"""No more chunks come."""


class Doorkeeper:
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
        self._buffers = Buffers(limits.message_bytes)
        self._opened = asyncio.Event()
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="peers-decode")

    def serve(self, server: grpc.aio.Server) -> None:
        """Add the service to ``server``."""
        push = grpc.stream_unary_rpc_method_handler(
            self._push, read_chunk, pb.Receipt.SerializeToString
        )
        handlers = grpc.method_handlers_generic_handler(SERVICE, {"Push": push})
        server.add_generic_rpc_handlers((handlers,))

    async def _push(
        self, requests: Chunks, context: grpc.aio.ServicerContext[Incoming, pb.Receipt]
    ) -> pb.Receipt:
        """Take one message, or say why not."""
        try:
            await self._receive(requests)
        except Refused as error:
            self.refused[error.verdict] += 1
            _log.info("device %d refused a message: %s", self._index, error)
            return pb.Receipt(verdict=error.verdict.name, detail=error.detail)
        return pb.Receipt(verdict=pb.ACCEPTED)

    def open(self, inbox: Inbox) -> None:
        """Play the round of ``inbox``; who came early for it is let in."""
        self.inbox = inbox
        self._opened.set()
        self._opened = asyncio.Event()

    def close(self) -> None:
        """Wait for the message that is being decoded."""
        self._decoder.shutdown()

    async def _receive(self, requests: Chunks) -> None:
        first = await _next(requests, self._limits.opening_s)
        if not isinstance(first, pb.Opening):
            raise Refused(Verdict.MALFORMED, "the first chunk is no opening")
        header, envelope = parse_header(first)
        inbox = await self._addressed(envelope, first)
        check_header(header, inbox.allowed, max_bytes=self._limits.message_bytes)
        async with inbox.admit(envelope, header.size) as place:
            payload = await self._payload(requests, header, inbox.ticket.seats[header.src].key)
            place.parcels = await asyncio.get_running_loop().run_in_executor(
                self._decoder, read_parcels, header, payload, inbox.allowed
            )

    async def _addressed(self, envelope: Envelope, opening: pb.Opening) -> Inbox:
        """The inbox that the message is for, if its sender is whom it says.

        Who is early waits a while: sending again would cost all that is on its way already.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.knock_s):
                while self._is_early(envelope):
                    await self._opened.wait()
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

    def _is_early(self, envelope: Envelope) -> bool:
        """Whether the round may be one to come: of two runs nobody knows which is the later."""
        if self.inbox is None:
            return True
        ticket = self.inbox.ticket
        return envelope.run != ticket.run or envelope.t > ticket.t

    async def _payload(self, requests: Chunks, header: pb.Header, key: bytes) -> memoryview:
        size, tag = header.size, tag_for(header, key)
        payload = self._buffers.take(size)
        came = 0
        while (data := await _next(requests, self._limits.stall_s)) is not END:
            if not isinstance(data, memoryview) or not data:
                raise Refused(Verdict.MALFORMED, "a chunk without data")
            start, came = came, came + len(data)
            if came > size:
                raise Refused(Verdict.OVERSIZE, f"more than the {size} bytes announced")
            payload[start:came] = data
            tag.add(payload[start:came])
        if came < size:
            raise Refused(Verdict.TRUNCATED, f"{size - came} of {size} bytes did not come")
        check_tag(header, tag)
        return payload


async def _next(requests: Chunks, limit_s: float) -> Incoming | object:
    try:
        async with asyncio.timeout(limit_s):
            return await anext(requests, END)
    except TimeoutError:
        raise Refused(Verdict.TRUNCATED, f"nothing came for {limit_s} s") from None
