"""Certificates in TLS handshakes: accepted and refused by ssl and by gRPC."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import grpc
import pytest

from hffm_flower.pki_folder import add, create
from hffm_flower.pki_inspect import inspect
from tests.support.certificates import PARTIES


def context(folder: Path, purpose: ssl.Purpose) -> ssl.SSLContext:
    made_for = ssl.create_default_context(purpose, cafile=str(folder / "ca.pem"))
    made_for.verify_flags |= ssl.VERIFY_X509_STRICT
    made_for.verify_mode = ssl.CERT_REQUIRED
    made_for.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return made_for


def handshake(server: Path, client: Path, name: str) -> str:
    """Mutual TLS over a socket pair; the client's common name as the server sees it."""
    near, far = socket.socketpair()
    seen: list[object] = []

    def serve() -> None:
        try:
            with context(server, ssl.Purpose.CLIENT_AUTH).wrap_socket(far, server_side=True) as s:
                seen.append(dict(s.getpeercert()["subject"][0])["commonName"])  # type: ignore
                s.sendall(b"ok")
        except ssl.SSLError as error:
            seen.append(error)
        finally:
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        wrap = context(client, ssl.Purpose.SERVER_AUTH).wrap_socket
        with wrap(near, server_hostname=name) as s:
            s.settimeout(10)
            assert s.recv(2) == b"ok", seen
    finally:
        near.close()
        thread.join(10)
    return str(seen[0])


@pytest.mark.parametrize("name", ["device-0", "127.0.0.1", "::1"])
def test_ssl_accepts_mutual_tls_between_devices(made: Path, name: str) -> None:
    assert handshake(made / "device-0", made / "device-1", name) == "device-1"


def test_ssl_refuses_a_name_that_was_not_given(made: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="device-1"):
        handshake(made / "device-0", made / "device-1", "device-1")


def test_a_server_certificate_is_no_client(made: Path) -> None:
    with pytest.raises((ssl.SSLError, AssertionError, OSError)):
        handshake(made / "device-0", made / "cloud", "device-0")


def test_ssl_refuses_an_expired_certificate(tmp_path: Path) -> None:
    root = tmp_path / "certs"
    create(root, PARTIES)
    add(root, PARTIES[2:3], days=1, force=True, now=datetime.now(UTC) - timedelta(days=2))
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(root / "device-0", root / "device-1", "device-0")
    faults = {found.name: found.faults for found in inspect(root)}
    (fault,) = faults.pop("device-0")
    assert fault.startswith(f"expired on {datetime.now(UTC) - timedelta(days=1):%Y-%m-%d} ")
    assert set(faults.values()) == {()}
    add(root, PARTIES[2:3], force=True)
    assert handshake(root / "device-0", root / "device-1", "device-0") == "device-1"


def test_another_authority_is_refused(made: Path, tmp_path: Path) -> None:
    create(tmp_path / "other", PARTIES)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "other" / "device-0", made / "device-1", "device-0")


def test_grpc_accepts_mutual_tls_and_refuses_strangers(made: Path, tmp_path: Path) -> None:
    create(tmp_path / "other", PARTIES)

    def parts(folder: Path) -> tuple[bytes, bytes, bytes]:
        ca, key, cert = ((folder / f).read_bytes() for f in ("ca.pem", "key.pem", "cert.pem"))
        return ca, key, cert

    def caller(request: bytes, context: grpc.ServicerContext) -> bytes:
        names = cast("dict[str, list[bytes]]", context.auth_context())
        return names["x509_common_name"][0]

    handler = grpc.method_handlers_generic_handler(
        "test.Peer", {"Who": grpc.unary_unary_rpc_method_handler(caller)}
    )
    ca, key, cert = parts(made / "device-0")
    credentials = grpc.ssl_server_credentials(
        [(key, cert)], root_certificates=ca, require_client_auth=True
    )
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[handler])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()

    def who(folder: Path, root: Path) -> bytes:
        own = grpc.ssl_channel_credentials((root / "ca.pem").read_bytes(), *parts(folder)[1:])
        with grpc.secure_channel(f"127.0.0.1:{port}", own) as channel:
            call = cast("Callable[..., bytes]", channel.unary_unary("/test.Peer/Who"))
            return call(b"", timeout=10)

    try:
        assert who(made / "device-1", made / "device-1") == b"device-1"
        with pytest.raises(grpc.RpcError):
            who(tmp_path / "other" / "device-1", made / "device-1")
    finally:
        server.stop(None).wait(10)
