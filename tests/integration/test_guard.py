"""The guard before a SuperLink: nodes' calls pass, all others are refused and logged."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from hffm_flower.pki import Party, Role
from hffm_flower.pki_folder import create
from hffm_flower.session.processes import free_addresses, listening
from tests.support.deployment import ROOT

BODY = os.urandom(3_000_000)


class SuperLink(BaseHTTPRequestHandler):
    """Notes what arrives; answers with the body's digest."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[tuple[str, str, dict[str, str]]]] = []

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            if len(body) < length:
                raise ConnectionAbortedError
        self.seen.append((self.command, self.path, dict(self.headers)))
        answer = hashlib.sha256(body).hexdigest().encode()
        self.send_response(418)
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("X-Answer", "yes")
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


class Quietly(ThreadingHTTPServer):
    """A call that breaks off is no news."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class Guarded:
    """A guard with TLS before a server that notes everything."""

    def __init__(self, folder: Path, **bounds: int) -> None:
        create(folder / "pki", [Party("cloud", Role.SERVER)])
        self.own = folder / "pki" / "cloud"
        self.address, behind = free_addresses(2)
        SuperLink.seen = []
        self.server = Quietly(("127.0.0.1", int(behind.split(":")[1])), SuperLink)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self.own / "cert.pem", self.own / "key.pem")
        self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.log = folder / "guard.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hffm_flower.session.guard", self.address, behind,
                 str(self.own)],
                env={**os.environ, "PYTHONPATH": str(ROOT),
                     **{f"HFFM_GUARD_{k.upper()}": str(v) for k, v in bounds.items()}},
                stdout=out, stderr=out,
            )  # fmt: skip
        until = time.monotonic() + 30
        while not listening(self.address) and time.monotonic() < until:
            time.sleep(0.05)
        self.trust = ssl.create_default_context(cafile=str(self.own / "ca.pem"))
        self.client = httpx.Client(
            base_url=f"https://{self.address}", verify=self.trust, trust_env=False, timeout=30
        )

    @contextmanager
    def connected(self) -> Iterator[ssl.SSLSocket]:
        host, port = self.address.split(":")
        with (
            socket.create_connection((host, int(port)), timeout=10) as plain,
            self.trust.wrap_socket(plain, server_hostname=host) as link,
        ):
            yield link

    def raw(self, request: bytes) -> bytes:
        """First line of the answer to bytes that no client library would send."""
        with self.connected() as link:
            link.sendall(request)
            return link.recv(4096).split(b"\r\n")[0]

    def end(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(timeout=20)
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    guard = Guarded(tmp_path_factory.mktemp("guard"))
    yield guard
    guard.end()


@pytest.mark.parametrize("chunked", [False, True])
def test_nodes_calls_go_through_whole(guarded: Guarded, chunked: bool) -> None:
    before = len(SuperLink.seen)
    answer = guarded.client.post(
        "/v1/fleet/push-messages", headers={"X-Signature": "abc"},
        content=iter([BODY[:1000], BODY[1000:]]) if chunked else BODY,
    )  # fmt: skip
    assert (answer.status_code, answer.headers["x-answer"]) == (418, "yes")
    assert answer.text == hashlib.sha256(BODY).hexdigest()
    ((method, path, headers),) = SuperLink.seen[before:]
    assert (method, path) == ("POST", "/v1/fleet/push-messages")
    assert {k.lower(): v for k, v in headers.items()}["x-signature"] == "abc"


@pytest.mark.parametrize(("method", "path"), [
    ("POST", "/v1/control/list-runs"), ("POST", "/v1/control/start-run"),
    ("POST", "/v1/runtime/acquire-task"), ("GET", "/v1/fleet/get-run"), ("GET", "/"),
    ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/health"),
    ("POST", "/v1/fleet/get-run?x=1"), ("OPTIONS", "*"), ("POST", "/V1/fleet/get-run"),
    ("POST", "/v1/fleet/"), ("POST", "/v1/fleet"), ("POST", "/v1/fleet/get-run/"),
    ("POST", "/v1/fleet/../control/list-runs"), ("POST", "//v1/control/list-runs"),
    ("POST", "/v1/fleet/%2e%2e/control/list-runs"), ("POST", "/v1/fleet%2f..%2fcontrol/x"),
    ("POST", "/v1/fleet/get-run;/../../control/list-runs"), ("POST", "/v1/fleet/get-run%0d%0aX:1"),
    ("POST", "http://127.0.0.1/v1/control/list-runs"),
])  # fmt: skip
def test_all_else_is_refused_and_logged(guarded: Guarded, method: str, path: str) -> None:
    before, said = len(SuperLink.seen), guarded.log.read_text().count("refused")
    line = guarded.raw(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    assert line.split()[1] in (b"403", b"400")
    assert len(SuperLink.seen) == before
    if line.split()[1] == b"403":
        until = time.monotonic() + 5
        while guarded.log.read_text().count("refused") == said and time.monotonic() < until:
            time.sleep(0.05)
        assert f"refused {method}" in guarded.log.read_text().splitlines()[-1]


def test_two_lengths_do_not_smuggle_a_second_call(guarded: Guarded) -> None:
    before = len(SuperLink.seen)
    inner = b"POST /v1/control/list-runs HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    guarded.raw(
        b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % (5 + len(inner)) + inner
    )
    time.sleep(0.3)
    assert all(path == "/v1/fleet/get-run" for _, path, _ in SuperLink.seen[before:])


def test_a_websocket_and_plain_http_are_refused(guarded: Guarded) -> None:
    before = len(SuperLink.seen)
    line = guarded.raw(
        b"GET /v1/runtime/acquire-task HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Key: YWJj\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert line.split()[1] == b"403"
    with pytest.raises(httpx.TransportError):
        httpx.post(f"http://{guarded.address}/v1/fleet/get-run", trust_env=False)
    assert len(SuperLink.seen) == before


def test_a_superlink_that_is_away_is_a_502(tmp_path: Path) -> None:
    guard = Guarded(tmp_path)
    try:
        guard.server.shutdown()
        guard.server.server_close()
        assert guard.client.post("/v1/fleet/get-run").status_code == 502
    finally:
        guard.end()
