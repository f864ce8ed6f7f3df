"""The door of a guard: how many connections are let in, before a byte of them is read."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import weakref
from collections import Counter
from typing import Any, Final, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

OPENING_S: Final = 20.0
"""A connection must have begun a call by then [s]."""


class Caller(H11Protocol):
    """A connection; h11 bounds the head of a call, and this how long the first may take."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        super().connection_made(cast(asyncio.Transport, transport))
        self.loop.call_later(OPENING_S, self._hurry)

    def _hurry(self) -> None:
        if self.cycle is None:
            self.transport.abort()


class Visitors:
    """Who is connected.

    Args:
        connections: Most at once.
        per_address: Most of one address at once.
    """

    def __init__(self, connections: int, per_address: int) -> None:
        self._connections, self._per_address = connections, per_address
        self._here: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Whether one more is let in."""
        here = self._here[address] < self._per_address
        if not here or self._here.total() >= self._connections:
            log.warning("no room for a connection from %s", address)
            return False
        self._here[address] += 1
        return True

    def leave(self, address: str) -> None:
        """One is gone."""
        self._here[address] -= 1
        self._here += Counter()  # drops those of whom none is here


class Visit(socket.socket):
    """A connection; counts as gone once it is closed."""

    gone: weakref.finalize[[str], Visit]

    def close(self) -> None:
        """Close."""
        super().close()
        self.gone()


class Door(socket.socket):
    """A listening socket that closes at once what is too much."""

    visitors: Visitors

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection.

        Raises:
            ConnectionAbortedError: It was too much.
        """
        came, address = super().accept()
        if not self.visitors.enter(address[0]):
            came.close()
            raise ConnectionAbortedError
        visit = Visit(self.family, self.type, self.proto, fileno=came.detach())
        visit.gone = weakref.finalize(visit, self.visitors.leave, address[0])
        return visit, address


def doors(host: str, port: int, *, connections: int, per_address: int) -> list[socket.socket]:
    """Open a door at every address that ``host`` means; all count together.

    Raises:
        OSError: An address cannot be had.
    """
    _allow_files(2 * connections + 100)
    visitors = Visitors(connections, per_address)
    opened: list[socket.socket] = []
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in found:
        door = Door(family, kind, protocol)
        opened.append(door)
        door.visitors = visitors
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        door.bind(address)
    return opened


def _allow_files(number: int) -> None:
    """Let this process open so many files, as far as it may: two for each connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
