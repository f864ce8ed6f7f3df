"""The other end of the emulator's socket: orders, and what became of the packets."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from hffm_flower.errors import HffmError
from hffm_flower.testbed.emulator import LARGEST_ORDER
from hffm_flower.testbed.link import Counters, Quality

EMULATOR: Final = "hffm_flower.testbed.emulator"
PATIENCE_S: Final = 30.0
"""How long the emulator may take to start, or to answer [s]."""
AT_ONCE: Final = 200
"""Links in one order."""

Ends = tuple[str, str]
"""Sender and receiver, as in the ledger."""


@dataclass(frozen=True, slots=True)
class Carried:
    """What the emulator has done so far.

    Attributes:
        cpu_s: Of its process, since it began to listen [s].
        packets: Taken in.
        links: Of every direction that had packets.
    """

    cpu_s: float
    packets: int
    links: Mapping[Ends, Counters]

    @property
    def bits(self) -> float:
        """Delivered, over all links [bit]."""
        return 8.0 * sum(counters.delivered_bytes for counters in self.links.values())


def command(path: Path, seed: int) -> tuple[str, ...]:
    """The emulator's program, listening at ``path``."""
    return (sys.executable, "-m", EMULATOR, str(path), str(seed))


class Control:
    """Orders to a running emulator; it ends when this is closed.

    Raises:
        HffmError: Nobody answers.
    """

    def __init__(self, path: Path) -> None:
        until = time.monotonic() + PATIENCE_S
        while True:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._socket.settimeout(PATIENCE_S)
            try:
                self._socket.connect(str(path))
                return
            except OSError as error:
                self._socket.close()
                if time.monotonic() > until:
                    raise HffmError(f"the link emulator does not listen: {error}") from error
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def attach(self, node: str, addresses: Iterable[str], device: int) -> None:
        """Hand a node's TUN device over; the emulator has a copy of its own."""
        self._order({"attach": node, "addresses": list(addresses)}, [device])

    def detach(self, node: str) -> None:
        """Carry packets of a node no longer."""
        self._order({"detach": node})

    def change(self, links: Mapping[Ends, Quality]) -> None:
        """Let links be so from now on."""
        rows = [[*ends, asdict(quality)] for ends, quality in links.items()]
        for at in range(0, len(rows), AT_ONCE):
            self._order({"links": rows[at : at + AT_ONCE]})

    def carried(self) -> Carried:
        """What the emulator has done so far."""
        links: dict[Ends, Counters] = {}
        while True:
            told = self._order({"counters": len(links), "most": AT_ONCE})
            links |= {(src, dst): Counters(**counted) for src, dst, counted in told["rows"]}
            if len(told["rows"]) < AT_ONCE:
                return Carried(told["cpu_s"], told["packets"], links)

    def close(self) -> None:
        """End the emulator."""
        self._socket.close()

    def _order(self, order: Mapping[str, object], handed: Iterable[int] = ()) -> dict[str, Any]:
        try:
            socket.send_fds(self._socket, [json.dumps(order).encode()], list(handed))
            data = self._socket.recv(LARGEST_ORDER)
        except OSError as error:
            raise HffmError(f"the link emulator does not answer: {error}") from error
        if not data:
            raise HffmError("the link emulator has ended")
        answer: dict[str, Any] = json.loads(data)
        if "error" in answer:
            raise HffmError(f"the link emulator: {answer['error']}")
        return answer
