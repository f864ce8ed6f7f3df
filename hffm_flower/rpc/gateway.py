"""The bridge between an edge's two sides: from its SuperNode to its ServerApp, on one machine.

The cloud's message reaches the edge's SuperNode, whose ClientApp hands it on as one gRPC
call; the edge's ServerApp answers when its cluster is done. A call that breaks is made
again: the same question gets the same answer, and is never played twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, Queue
from types import TracebackType
from typing import Final, Self

import grpc
from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto

from hffm_flower.errors import HffmError, Interrupted, ProtocolError
from hffm_flower.rpc.channel import Credentials, listen

log = logging.getLogger(__name__)

METHOD: Final = "/hffm.EdgeGateway/Ask"
LARGEST_BYTES: Final = 2**31 - 1
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", LARGEST_BYTES),
    ("grpc.max_send_message_length", LARGEST_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.so_reuseport", 0),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
_LATER: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@dataclass(frozen=True, slots=True)
class Question:
    """A message of the cloud.

    Attributes:
        run: The cloud's run; an edge serves one.
        kind: Type of the message.
        t: Edge round that it belongs to.
        content: What it says.
    """

    run: int
    kind: str
    t: int
    content: RecordDict


def ask(
    address: str, question: Question, *, credentials: Credentials | None, deadline_s: float
) -> RecordDict:
    """Ask the gateway at ``address``; waits for it to come up, and asks again if it goes.

    Raises:
        ProtocolError: The edge refused, or did not answer within ``deadline_s`` [s].
    """
    until = time.monotonic() + deadline_s
    head = {"run": question.run, "kind": question.kind, "t": question.t}
    data = _pack(head, question.content)
    with _channel(address, credentials) as channel:
        call = channel.unary_unary(METHOD, _same, _same)
        while True:
            left_s = until - time.monotonic()
            try:
                answer = call(data, timeout=max(0.01, left_s), wait_for_ready=True)
                break
            except grpc.RpcError as error:
                code, details = error.code(), error.details()
                if code not in _LATER or left_s <= 0:
                    raise ProtocolError(
                        f"the edge's gateway at {address}: {code.name}, {details}"
                    ) from error
                log.warning("the gateway at %s is gone (%s); asking again", address, details)
                time.sleep(min(1.0, max(0.0, left_s)))
    head, content = _unpack(answer)
    if "error" in head:
        raise ProtocolError(str(head["error"]))
    return content


class Superseded(HffmError):
    """Another run has begun: the question is for whoever serves next."""


class EdgeGateway:
    """Takes the cloud's messages in, and has the ServerApp's own thread answer them in turn.

    Args:
        address: Where to listen, ``HOST:PORT``; a loopback address.
        credentials: Of this machine, for mutual TLS; None: none.
    """

    def __init__(self, address: str, credentials: Credentials | None) -> None:
        self._questions: Queue[tuple[bytes, Question, Queue[bytes], Callable[[], bool]]] = Queue()
        self._answered: dict[bytes, tuple[bytes, bool]] = {}
        """The last question, as it came, and its answer; whether it was not refused."""
        self._closed = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(max_workers=8), options=_OPTIONS)
        handler = grpc.unary_unary_rpc_method_handler(self._take, _same, _same)
        _, service, method = METHOD.split("/")
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, {method: handler})]
        )
        self.port = listen(self._server, address, credentials)
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._closed.set()
        self._server.stop(grace=2.0).wait()

    def serve(
        self,
        answer: Callable[[Question], RecordDict],
        *,
        last: str,
        stop: threading.Event,
        silence_s: float,
    ) -> None:
        """Answer questions in this thread until one of kind ``last`` was answered.

        Args:
            answer: Called once for each question that differs from those before.
            last: Kind of the message that ends the service.
            stop: Set from outside to end it.
            silence_s: Longest time without a question [s].

        Raises:
            Interrupted: ``stop`` was set.
            Superseded: ``answer`` leaves this question, and what follows, to whoever serves next.
            ProtocolError: No question came for ``silence_s``, but for refused ones.
        """
        heard = time.monotonic()
        while True:
            if stop.is_set():
                raise Interrupted("stopped on request")
            try:
                asked, question, reply, is_waiting = self._questions.get(timeout=0.5)
            except Empty:
                if time.monotonic() - heard > silence_s:
                    raise ProtocolError(f"the cloud was silent for {silence_s:g} s") from None
                continue
            if not is_waiting():
                continue  # who asked has gone
            if asked not in self._answered:
                self._answered = {asked: _answered(answer, question)}
            data, good = self._answered[asked]
            reply.put(data)
            if good:
                heard = time.monotonic()
                if question.kind == last:
                    return

    def _take(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            head, content = _unpack(data)
            run, t = int(str(head["run"])), int(str(head["t"]))
            question = Question(run, str(head["kind"]), t, content)
        except (ProtocolError, KeyError, TypeError, ValueError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no question: {error}")
        reply: Queue[bytes] = Queue()
        asked = hashlib.blake2b(data, digest_size=16).digest()
        self._questions.put((asked, question, reply, context.is_active))
        while not self._closed.is_set() and context.is_active():
            try:
                return reply.get(timeout=0.5)
            except Empty:
                continue
        try:  # the last answer and the end may come together
            return reply.get_nowait()
        except Empty:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the edge is ending")


def _answered(answer: Callable[[Question], RecordDict], question: Question) -> tuple[bytes, bool]:
    """What is sent back, and whether the question was not refused."""
    try:
        return _pack({}, answer(question)), True
    except (Interrupted, Superseded):
        raise
    except HffmError as error:
        reason = f"{type(error).__name__}: {error}"
        log.error("%s of edge round %d failed: %s", question.kind, question.t, reason)
        return _pack({"error": reason}, RecordDict()), False


def _pack(head: dict[str, object], content: RecordDict) -> bytes:
    words = json.dumps(head).encode()
    body: bytes = recorddict_to_proto(content).SerializeToString()
    return len(words).to_bytes(4, "big") + words + body


def _unpack(data: bytes) -> tuple[dict[str, object], RecordDict]:
    try:
        end = 4 + int.from_bytes(data[:4], "big")
        head = json.loads(data[4:end])
        content = recorddict_from_proto(RecordDictProto.FromString(data[end:]))
    except Exception as error:  # protobuf's own errors have no common base
        raise ProtocolError(f"a gateway message cannot be read: {error}") from error
    if not isinstance(head, dict):
        raise ProtocolError("a gateway message has no head")
    return head, content


def _channel(address: str, credentials: Credentials | None) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(address, options=_OPTIONS)
    tls = grpc.ssl_channel_credentials(
        credentials.authority, credentials.key, credentials.certificate
    )
    return grpc.secure_channel(address, tls, options=_OPTIONS)


def _same(data: bytes) -> bytes:
    return data
