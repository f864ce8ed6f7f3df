"""The peer channels of this process: one server for each address, opened when first needed.

A long-lived node keeps its server from round to round. Flower's own node starts a process
for every message: there the server lives as long as the process.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from clients.inbox import MIB, Limits
from clients.peers import PeerExchange
from hffm_flower.errors import ConfigError
from hffm_flower.pki_folder import CA_CERT, CERT, KEY
from hffm_flower.rpc.channel import Credentials
from hffm_flower.rpc.reactor import Reactor

NodeConfig = Mapping[str, str | int | float | bool]

PATIENCE_S: Final = 5.0
"""How long an address may be taken by the process that had it before [s]."""
PAUSE_S: Final = 0.2
BUFFERED: Final = 4
"""Messages of the largest size that are held at once."""


@dataclass(slots=True)
class _Channels:
    """All of this process, on one event loop."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    reactor: Reactor | None = None
    open: dict[str, PeerExchange] = field(default_factory=dict)


_here = _Channels()


def peer_address(node_config: NodeConfig) -> str:
    """Where this node's peers reach it; empty: it has no peer channel."""
    return str(node_config.get("peer-address", ""))


def peer_channel(node_config: NodeConfig, index: int) -> PeerExchange:
    """The channel of device ``index``, which stays open until `close_channels`.

    Args:
        node_config: ``peer-address``; ``certificates``, a folder as `hffm certs` makes it, or
            ``insecure``; optionally ``peer-message-mib``, the largest message that is taken.
        index: The device that this node is.

    Raises:
        ConfigError: The settings cannot work, or the address is taken.
    """
    address = peer_address(node_config)
    if not address:
        raise ConfigError("this node has no peer-address, so it cannot speak with peers")
    with _here.lock:
        channel = _here.open.get(address)
        if channel is not None and channel.index != index:
            _here.open.pop(address).close()
            channel = None
        if channel is None:
            _here.reactor = _here.reactor or Reactor()
            channel = _listen(address, node_config, index, _here.reactor)
            _here.open[address] = channel
        return channel


def close_channels() -> None:
    """Free all addresses."""
    with _here.lock:
        for channel in _here.open.values():
            channel.close()
        _here.open.clear()
        if _here.reactor is not None:
            _here.reactor.close()
            _here.reactor = None


atexit.register(close_channels)


def _listen(address: str, node_config: NodeConfig, index: int, reactor: Reactor) -> PeerExchange:
    folder = str(node_config.get("certificates", ""))
    message_bytes = int(node_config.get("peer-message-mib", 64)) * MIB
    limits = Limits(message_bytes=message_bytes, buffered_bytes=BUFFERED * message_bytes)
    credentials = _credentials(Path(folder)) if folder else None
    insecure = node_config.get("insecure") is True
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return PeerExchange(
                index, address,
                credentials=credentials, insecure=insecure, limits=limits, reactor=reactor,
            )  # fmt: skip
        except ConfigError:
            if (credentials is None) is not insecure or time.monotonic() > until:
                raise
        time.sleep(PAUSE_S)


def _credentials(folder: Path) -> Credentials:
    folder = folder.expanduser()
    return Credentials.read(folder / CA_CERT, folder / CERT, folder / KEY)
