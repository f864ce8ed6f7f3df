"""The guard in front of a SuperLink: what the tier below may call, and nothing else.

A SuperLink serves three interfaces on one port. Nodes need ``/v1/fleet``. ``/v1/control``
starts and stops runs and registers nodes, ``/v1/runtime`` is for the ServerApp's own process;
neither asks who calls. So the SuperLink listens on loopback, and this proxy, a process of its
own, is all that others reach: it ends their TLS, hands calls of ``/v1/fleet`` on over a
connection of its own, and refuses and logs everything else.

    python -m hffm_flower.session.guard HOST:PORT SUPERLINK [CERTIFICATES]
"""

from __future__ import annotations

import logging
import re
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any, Final

import httpx
import uvicorn

from hffm_flower.pki_folder import CA_CERT, CERT, KEY

log = logging.getLogger(__name__)

ALLOWED: Final = re.compile(rb"/v1/fleet/[a-z]+(-[a-z]+)*")
"""The calls that go through, as they stand in the request: nothing encoded, no dots."""
HOP: Final = frozenset({
    b"connection", b"expect", b"host", b"keep-alive", b"proxy-authenticate",
    b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip
"""Headers that belong to one connection and are not handed on."""
TIMEOUT: Final = httpx.Timeout(120.0, connect=5.0, pool=None)

Headers = Iterable[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Guard:
    """ASGI application that hands the calls of nodes on to a SuperLink.

    Args:
        client: Connections to the SuperLink.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one call."""
        if scope["type"] != "http":
            return
        path: bytes = scope["raw_path"]
        called = scope["method"] == "POST" and ALLOWED.fullmatch(path) and not scope["query_string"]
        if not called:
            who = scope.get("client") or ("?", 0)
            log.warning("refused %s %.200r from %s", scope["method"], path, who[0])
            await _answer(send, 403, b"only nodes' calls are served here\n")
            return
        request = self._client.build_request(
            "POST", path.decode("ascii"), headers=_handed_on(scope["headers"]),
            content=_body(receive),
        )  # fmt: skip
        try:
            response = await self._client.send(request, stream=True)
        except httpx.TransportError as error:
            log.warning("the SuperLink does not answer: %r", error)
            await _answer(send, 502, b"the SuperLink is away\n")
            return
        try:
            headers = _handed_on(response.headers.raw)
            start = {"type": "http.response.start", "status": response.status_code}
            await send({**start, "headers": headers})
            async for part in response.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()


def _handed_on(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Headers for the next connection; a body in chunks has no length that counts."""
    given = [(name.lower(), value) for name, value in headers]
    drop = HOP | {b"content-length"} if any(n == b"transfer-encoding" for n, _ in given) else HOP
    return [(name, value) for name, value in given if name not in drop]


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise httpx.ReadError("the node has hung up")
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _answer(send: Send, status: int, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text)),
               (b"connection", b"close")]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})


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


def serve(listen: str, superlink: str, certificates: Path | None) -> None:
    """Stand in front of ``superlink`` until a signal comes."""
    host, _, port = listen.rpartition(":")
    config = uvicorn.Config(
        Guard(client_of(superlink, certificates)), host=host.strip("[]"), port=int(port),
        ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
        date_header=False, timeout_graceful_shutdown=2,
        ssl_certfile=certificates and certificates / CERT,
        ssl_keyfile=certificates and certificates / KEY,
    )  # fmt: skip
    uvicorn.Server(config).run()


if __name__ == "__main__":
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    serve(sys.argv[1], sys.argv[2], Path(sys.argv[3]) if sys.argv[3:] else None)
