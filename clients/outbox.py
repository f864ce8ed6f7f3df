"""The sending side of a peer: one message, tried until it is there or time is up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import grpc.aio

from hffm_flower.modules import ModuleKey
from hffm_flower.rpc import exchange_pb2 as pb
from hffm_flower.rpc.channel import Credentials, open_channel
from hffm_flower.rpc.codec import Turn, Verdict
from hffm_flower.rpc.letters import Letter
from hffm_flower.rpc.tickets import Ticket
from hffm_flower.rpc.wire import PUSH, as_is

_log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 2.0
THERE: Final = frozenset({Verdict.ACCEPTED, Verdict.DUPLICATE})
AGAIN: Final = frozenset(
    {Verdict.NOT_READY, Verdict.WRONG_RUN, Verdict.TRUNCATED, Verdict.CHECKSUM}
)
"""Verdicts that may be other ones in a moment; a receiver may still be in the run before."""


@dataclass(frozen=True, slots=True)
class Transmission:
    """What one message put on the air.

    Attributes:
        turn: Phase, segment and step.
        src: Device that sent.
        dst: Device that it was for.
        payload_bytes: Safetensors bytes handed to the network, of all tries.
        header_bytes: Header and seal, of all tries.
        letter_bytes: The whole message, once.
        modules: What it carried.
        sizes: Tensors of each module [byte].
        tries: How often it was sent.
        arrived: The receiver has it.
        began_s, ended_s: Of the last try, from its first chunk to the receipt, or to its failure,
            by `time.monotonic` [s].
    """

    turn: Turn
    src: int
    dst: int
    payload_bytes: int
    header_bytes: int
    letter_bytes: int
    modules: tuple[ModuleKey, ...]
    sizes: tuple[int, ...]
    tries: int
    arrived: bool
    began_s: float
    ended_s: float


class _Try:
    """One try; counts what is really sent."""

    def __init__(self, letter: Letter) -> None:
        self._letter = letter
        self.payload_bytes = 0
        self.header_bytes = 0
        self.began_s = time.monotonic()
        self.problem = "out of time"

    async def frames(self) -> AsyncIterator[bytes]:
        for frame, payload_bytes in self._letter.frames():
            yield frame
            if payload_bytes:  # it was taken: gRPC asks for the next
                self.payload_bytes += payload_bytes
            else:
                self.began_s = time.monotonic()
                self.header_bytes = len(self._letter.header) + len(self._letter.seal)


class Outbox:
    """Messages of one device in one edge round. Lives on the event loop."""

    def __init__(self, ticket: Ticket, credentials: Credentials | None) -> None:
        self._ticket = ticket
        self._credentials = credentials
        self._channels: dict[int, grpc.aio.Channel] = {}

    async def send(self, turn: Turn, dst: int, letter: Letter, *, limit: float) -> Transmission:
        """Send until it is there, the receiver does not want it, or ``limit`` (loop time)."""
        pause_s = FIRST_PAUSE_S
        tries = payload = header = 0
        verdict: Verdict | None = None
        problem, began_s = "out of time", time.monotonic()
        while (left_s := limit - asyncio.get_running_loop().time()) > 0:
            attempt = _Try(letter)
            verdict = await self._try(dst, attempt, left_s)
            tries += 1
            problem, began_s = attempt.problem, attempt.began_s
            payload += attempt.payload_bytes
            header += attempt.header_bytes
            if verdict is not None and verdict not in AGAIN:
                break
            await asyncio.sleep(max(0.0, min(pause_s, limit - asyncio.get_running_loop().time())))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        ended_s = time.monotonic()
        if verdict not in THERE:
            _log.info(
                "device %d did not reach %d in %s: %s", self._ticket.index, dst, turn, problem
            )
        return Transmission(
            turn, self._ticket.index, dst, payload, header,
            letter.total_bytes, letter.modules, letter.sizes, tries, verdict in THERE,
            began_s, ended_s,
        )  # fmt: skip

    async def close(self) -> None:
        """Cut all connections."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    async def _try(self, dst: int, attempt: _Try, left_s: float) -> Verdict | None:
        """The receiver's verdict; None if it did not answer."""
        if dst not in self._channels:
            seat = self._ticket.seats[dst]
            self._channels[dst] = open_channel(seat.address, self._credentials)
        push = self._channels[dst].stream_unary(PUSH, as_is, pb.Receipt.FromString)
        try:
            receipt = await push(attempt.frames(), timeout=left_s)
            verdict = Verdict(receipt.verdict)
        except grpc.aio.AioRpcError as error:
            attempt.problem = f"{error.code().name.lower()}: {error.details()}"
            return None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # nobody waits for this message any more
            attempt.problem = "the call was cut off"  # gRPC says so of a stream that breaks
            return None
        except ValueError:  # a verdict of a protocol to come
            attempt.problem = f"verdict {receipt.verdict}"
            return None
        attempt.problem = f"{verdict.name.lower()}: {receipt.detail}"
        return verdict
