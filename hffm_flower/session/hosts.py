"""The machines that a tree's programs run on, by name: ``cloud``, ``edge-0``, ``device-3``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from hffm_flower.session.processes import Processes, free_addresses, listening

Begun = Mapping[str, int]
"""Edge, as ``edge/1``, or ``cloud`` in a tree without edges -> the edge round it is in.

0: no run is at work yet.
"""


class Hosts(Protocol):
    """What a tree asks of them."""

    @property
    def timings(self) -> Path | None:
        """Folder into which devices write when their messages went; None: they do not."""
        ...

    def ip(self, host: str) -> str:
        """Under which the others reach it."""
        ...

    def free(self, host: str, *, inside: bool = False) -> str:
        """A new ``HOST:PORT`` that nobody has; ``inside``: on the host's own loopback."""
        ...

    def command(self, host: str, argv: tuple[str, ...]) -> tuple[str, ...]:
        """The command that runs ``argv`` there."""
        ...

    def listening(self, host: str, address: str) -> bool:
        """Whether somebody takes connections at ``address``, as seen from there."""
        ...

    def begin(self, processes: Processes) -> None:
        """Called before the tree's programs are started."""
        ...

    def tick(self, begun: Callable[[], Begun]) -> None:
        """Called about twice a second."""
        ...


class Loopback:
    """All of them are this machine, which tells them apart by ports."""

    timings: Path | None = None

    def __init__(self) -> None:
        self._given: set[str] = set()

    def ip(self, host: str) -> str:
        return "127.0.0.1"

    def free(self, host: str, *, inside: bool = False) -> str:
        while (address := free_addresses(1)[0]) in self._given:
            continue
        self._given.add(address)
        return address

    def command(self, host: str, argv: tuple[str, ...]) -> tuple[str, ...]:
        return argv

    def listening(self, host: str, address: str) -> bool:
        return listening(address)

    def begin(self, processes: Processes) -> None:
        """Nothing is needed."""

    def tick(self, begun: Callable[[], Begun]) -> None:
        """Nothing changes."""


HERE = Loopback()
"""For programs that are where this process is."""
