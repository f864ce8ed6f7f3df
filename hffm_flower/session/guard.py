"""The guard in front of a SuperLink: what the tier below may call, and nothing else.

A SuperLink serves three interfaces on one port. Nodes need ``/v1/fleet``. ``/v1/control``
starts and stops runs and registers nodes, ``/v1/runtime`` is for the ServerApp's own process;
neither asks who calls. So the SuperLink listens on loopback, and this proxy, a process of its
own, is all that others reach: it ends their TLS, hands calls of ``/v1/fleet`` on over a
connection of its own, and refuses and logs everything else.

A SuperLink reads a call to its end before it asks who calls, so the guard also bounds what
strangers can make it hold: see `Bounds`.

    python -m hffm_flower.session.guard HOST:PORT SUPERLINK [CERTIFICATES]
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

import httpx
import uvicorn

from hffm_flower.errors import ConfigError
from hffm_flower.pki_folder import CA_CERT, CERT, KEY
from hffm_flower.session.door import Caller, doors

log = logging.getLogger(__name__)

ALLOWED: Final = re.compile(rb"/v1/fleet/[a-z]+(-[a-z]+)*")
"""The calls that go through, as they stand in the request: nothing encoded, no dots."""
HOP: Final = frozenset({
    b"connection", b"expect", b"host", b"keep-alive", b"proxy-authenticate",
    b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip
"""Headers that belong to one connection and are not handed on."""
TIMEOUT: Final = httpx.Timeout(120.0, connect=5.0, pool=None)
PUSHES: Final = frozenset({b"/v1/fleet/push-messages", b"/v1/fleet/push-object"})
"""The calls that bring something; all others only ask, or tell that a node is there."""
MIB: Final = 2**20
SMALL: Final = MIB
"""Largest body of a call that brings nothing."""
LINGER_S: Final = 1.0
"""Who is refused while he sends is listened to for so long, so that he reads the answer."""
LINES: Final = 100
"""Lines of one kind in a minute of the log."""
ENVIRONMENT: Final = "HFFM_GUARD_"

Headers = Iterable[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the guard takes in. ``HFFM_GUARD_PUSH_MIB`` and so on in the environment change it.

    Attributes:
        push_mib: Largest body of a call that brings a message or a part of one [MiB]; Flower
            cuts arrays into parts of 5 MiB.
        all_mib: Bodies under way at once, of all nodes together [MiB].
        connections: At once.
        per_address: Connections of one client address at once.
        stall_s: A body of which nothing comes for so long is given up [s].
        body_s: So is one that is not whole by then [s].
    """

    push_mib: int = 64
    all_mib: int = 1024
    connections: int = 1024
    per_address: int = 512
    stall_s: int = 60
    body_s: int = 600

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """The defaults, but for what ``environment`` says.

        Raises:
            ConfigError: It says something that is no positive whole number.
        """
        names = {f.name: ENVIRONMENT + f.name.upper() for f in fields(cls)}
        said = {k: environment[name] for k, name in names.items() if name in environment}
        for k, text in said.items():
            if not re.fullmatch("[1-9][0-9]{0,8}", text):
                raise ConfigError(f"{names[k]} must be a positive whole number, not {text!r}")
        return cls(**{k: int(text) for k, text in said.items()})

    def body_bytes(self, path: bytes) -> int:
        """Largest body of a call."""
        return self.push_mib * MIB if path in PUSHES else SMALL


class Refusal(Exception):
    """A call that is not handed on, or not to its end."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _HungUp(Exception):
    """The node has gone."""


@dataclass(slots=True)
class _Body:
    """How far the body of a call has come."""

    most: int
    came: int = 0
    whole: bool = False


class Guard:
    """ASGI application that hands the calls of nodes on to a SuperLink.

    Args:
        client: Connections to the SuperLink.
        bounds: What calls may bring.
    """

    def __init__(self, client: httpx.AsyncClient, bounds: Bounds | None = None) -> None:
        self._client = client
        self._bounds = bounds or Bounds()
        self._under_way = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one call."""
        if scope["type"] != "http":
            return
        path: bytes = scope["raw_path"]
        body = _Body(self._bounds.body_bytes(path))
        try:
            _check(scope, body.most)
            try:
                await self._hand_on(path, scope["headers"], self._parts(body, receive), send)
            finally:
                self._under_way -= body.came
        except Refusal as error:
            who = scope.get("client") or ("?", 0)
            log.warning("refused %s %.200r from %s: %s", scope["method"], path, who[0], error)
            await _answer(send, error, None if body.whole else receive)
        except _HungUp:
            return

    async def _hand_on(
        self, path: bytes, headers: Headers, content: AsyncIterator[bytes], send: Send
    ) -> None:
        request = self._client.build_request(
            "POST", path.decode("ascii"), headers=_handed_on(headers), content=content
        )
        try:
            response = await self._client.send(request, stream=True)
        except httpx.TransportError as error:
            log.warning("the SuperLink does not answer: %r", error)
            raise Refusal(502, "the SuperLink is away") from error
        try:
            start = {"type": "http.response.start", "status": response.status_code}
            await send({**start, "headers": _handed_on(response.headers.raw)})
            async for part in response.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()

    async def _parts(self, body: _Body, receive: Receive) -> AsyncIterator[bytes]:
        """The body as it comes; too much of it, or too slow, ends the call."""
        now, bounds = asyncio.get_running_loop().time, self._bounds
        until = now() + bounds.body_s
        while not body.whole:
            try:
                async with asyncio.timeout_at(min(until, now() + bounds.stall_s)):
                    message = await receive()
            except TimeoutError:
                raise Refusal(408, f"after {body.came} bytes the rest did not come") from None
            if message["type"] == "http.disconnect":
                raise _HungUp
            part = message.get("body", b"")
            body.came += len(part)
            self._under_way += len(part)
            if body.came > body.most:
                raise Refusal(413, f"more than {body.most} bytes")
            if self._under_way > bounds.all_mib * MIB:
                raise Refusal(503, "too much is under way")
            body.whole = not message.get("more_body", False)
            yield part


def _check(scope: MutableMapping[str, Any], most: int) -> None:
    """Refuse a call by its head.

    Raises:
        Refusal: It is none of a node, or too long.
    """
    nodes = scope["method"] == "POST" and ALLOWED.fullmatch(scope["raw_path"])
    if not nodes or scope["query_string"]:
        raise Refusal(403, "only nodes' calls are served here")
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > most:
            raise Refusal(413, f"{int(value)} bytes are more than {most}")


def _handed_on(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Headers for the next connection; a body in chunks has no length that counts."""
    given = [(name.lower(), value) for name, value in headers]
    drop = HOP | {b"content-length"} if any(n == b"transfer-encoding" for n, _ in given) else HOP
    return [(name, value) for name, value in given if name not in drop]


async def _answer(send: Send, refusal: Refusal, receive: Receive | None) -> None:
    """Say why not; with ``receive``, drop for a moment what is still on its way."""
    text = f"{refusal}\n".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text)),
               (b"connection", b"close")]  # fmt: skip
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": text, "more_body": True})
    if receive is not None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while (await receive()).get("more_body"):
                    pass
    await send({"type": "http.response.body", "body": b""})


def client_of(superlink: str, certificates: Path | None) -> httpx.AsyncClient:
    """Connections to a SuperLink; with a folder of certificates over TLS, and verified."""
    verify: ssl.SSLContext | bool = False
    if certificates is not None:
        verify = ssl.create_default_context(cafile=str(certificates / CA_CERT))
    return httpx.AsyncClient(
        base_url=f"{'https' if certificates else 'http'}://{superlink}", verify=verify,
        timeout=TIMEOUT, trust_env=False, follow_redirects=False,
        limits=httpx.Limits(max_connections=None, keepalive_expiry=2.0),
    )  # fmt: skip


class Quiet(logging.Filter):
    """Keeps strangers from filling the log: so many lines of one kind in a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._since = 0.0
        self._said: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written; the last one says that it is."""
        if not 0 <= record.created - self._since < 60:
            self._since = record.created
            self._said.clear()
        kind = str(record.msg)
        self._said[kind] += 1
        if self._said[kind] == LINES:
            record.msg = f"{kind} (more lines like this are left out for a minute)"
        return self._said[kind] <= LINES


def serve(listen: str, superlink: str, certificates: Path | None, bounds: Bounds) -> None:
    """Stand in front of ``superlink`` until a signal comes."""
    host, _, port = listen.rpartition(":")
    config = uvicorn.Config(
        Guard(client_of(superlink, certificates), bounds), http=Caller, loop="asyncio",
        ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
        date_header=False, timeout_graceful_shutdown=2, limit_concurrency=bounds.connections,
        ssl_certfile=certificates and certificates / CERT,
        ssl_keyfile=certificates and certificates / KEY,
    )  # fmt: skip
    opened = doors(
        host.strip("[]"), int(port), connections=bounds.connections, per_address=bounds.per_address
    )
    log.info("running on %s://%s", "https" if certificates else "http", listen)
    uvicorn.Server(config).run(sockets=opened)


def main(listen: str, superlink: str, certificates: str = "") -> None:
    """Serve with the bounds that the environment tells."""
    out = logging.StreamHandler()
    out.addFilter(Quiet())
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[out]
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        bounds = Bounds.read(os.environ)
        serve(listen, superlink, Path(certificates) if certificates else None, bounds)
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
