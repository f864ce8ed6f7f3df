"""Connections between peers: mutual TLS, bounded windows, quick second tries."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import grpc
import grpc.aio

from hffm_flower.errors import ConfigError
from hffm_flower.rpc.codec import CHUNK_BYTES, HEADER_BYTES

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", CHUNK_BYTES + HEADER_BYTES),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What mutual TLS needs; both sides show a certificate of the same authority.

    Attributes:
        authority: Certificates (PEM) of the authority that signs the peers' certificates.
        certificate: This device's own certificate chain (PEM).
        key: Its private key (PEM).
        server_name: Name that every peer's certificate carries; empty: its address's host.
    """

    authority: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    server_name: str = ""

    @classmethod
    def read(cls, authority: Path, certificate: Path, key: Path, *, server_name: str = "") -> Self:
        """Read the three PEM files.

        Raises:
            ConfigError: A file cannot be read, or holds no PEM.
        """
        return cls(_pem(authority), _pem(certificate), _pem(key), server_name)


def open_channel(address: str, credentials: Credentials | None) -> grpc.aio.Channel:
    """A channel to ``address``; without TLS if there are no credentials."""
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    options: list[tuple[str, int | str]] = [*_OPTIONS]
    if credentials.server_name:
        options.append(("grpc.ssl_target_name_override", credentials.server_name))
    tls = grpc.ssl_channel_credentials(
        credentials.authority, credentials.key, credentials.certificate
    )
    return grpc.aio.secure_channel(address, tls, options=options)


def open_server(most_streams: int, window_bytes: int) -> grpc.aio.Server:
    """A server that takes up to ``most_streams`` messages at once; the rest try again.

    Of a message that nobody reads, gRPC takes ``window_bytes``, and then holds its sender back.
    """
    own = (("grpc.so_reuseport", 0), ("grpc.http2.lookahead_bytes", window_bytes))
    options = (*_OPTIONS, *own)
    return grpc.aio.server(options=options, maximum_concurrent_rpcs=most_streams)


def listen(
    server: grpc.aio.Server | grpc.Server, address: str, credentials: Credentials | None
) -> int:
    """Bind ``server`` to ``address``; returns the port.

    Raises:
        ConfigError: The address cannot be bound.
    """
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            pair = (credentials.key, credentials.certificate)
            tls = grpc.ssl_server_credentials([pair], credentials.authority, True)
            port = server.add_secure_port(address, tls)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address}: {error}") from error
    if port == 0:
        raise ConfigError(f"cannot listen on {address}")
    return port


def _pem(path: Path) -> bytes:
    try:
        found = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the peers' TLS file {path}: {error}") from error
    if b"-----BEGIN " not in found:
        raise ConfigError(f"the peers' TLS file {path} holds no PEM")
    return found
