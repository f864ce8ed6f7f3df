"""What every node sent: the rows from which traffic, latency and energy are derived.

Addresses are ``cloud``, ``edge/3`` and ``device/17``.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from hffm_flower.errors import ConfigError

CLOUD: Final = "cloud"
EDGE: Final = "edge"
DEVICE: Final = "device"
LONGEST_INDEX: Final = 20


class LinkClass(StrEnum):
    """Between whom a message goes."""

    UPLINK = "uplink"
    DOWNLINK = "downlink"
    D2D = "d2d"
    BACKHAUL = "backhaul"


class Phase(StrEnum):
    """Part of an edge round, in the order of the round."""

    SETUP = "setup"
    """Registration, and the initial modules."""
    DISPATCH = "dispatch"
    """Cloud to edges."""
    DOWN = "down"
    """Edge to devices."""
    SHARE = "share"
    """Device to device, before training."""
    EXCHANGE = "exchange"
    """Device to device, after training."""
    UP = "up"
    """Devices to edge."""
    ASK = "ask"
    """Edge asks a device again."""
    REPAIR = "repair"
    """That device's direct upload."""
    COLLECT = "collect"
    """Edges to cloud."""
    PUBLISH = "publish"
    """Cloud to edges, after aggregation."""
    EVALUATE = "evaluate"
    """Measuring, and reports where nothing else is sent."""


PHASES: Final = tuple(Phase)
"""In the order of a round."""
PRICED: Final = tuple(p for p in PHASES if p not in (Phase.SETUP, Phase.EVALUATE))
"""Phases that a round is charged for."""
_ORDER: Final = {phase: place for place, phase in enumerate(PHASES)}


@dataclass(frozen=True, slots=True)
class Transfer:
    """One message over one link.

    Attributes:
        t: Edge round; 0 is before the first.
        phase: Part of the round.
        step: Order inside the phase; transfers of one step go at the same time.
        src: Address of the sender.
        dst: Address of the receiver.
        link: Class of the link between the two.
        header_bytes: Everything else of the serialised message [byte].
        modules: Names of the modules inside.
        sizes: Tensors of each of them, in that order [byte].

    Raises:
        ConfigError: A number is below 0, or modules and sizes are not as many.
    """

    t: int
    phase: Phase
    step: int
    src: str
    dst: str
    link: LinkClass
    header_bytes: int
    modules: tuple[str, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = [(name, getattr(self, name)) for name in ("t", "step", "header_bytes")]
        for name, number in [*numbers, *(("size", size) for size in self.sizes)]:
            if number < 0:
                raise ConfigError(
                    f"{name} = {number} of a transfer {self.src} -> {self.dst}; it must be >= 0"
                )
        if len(self.modules) != len(self.sizes):
            raise ConfigError(
                f"{len(self.modules)} modules with {len(self.sizes)} sizes in a transfer "
                f"{self.src} -> {self.dst}; each needs its own"
            )

    @property
    def bytes(self) -> int:
        """Tensors of all its modules [byte]."""
        return sum(self.sizes)

    @property
    def order(self) -> tuple[int, int]:
        """Place in the round: that of the phase, then the step."""
        return _ORDER[self.phase], self.step


def node_of(address: str) -> tuple[str, int]:
    """Kind and index of the node at ``address``; the cloud's index is 0.

    Raises:
        ConfigError: Not an address.
    """
    if address == CLOUD:
        return CLOUD, 0
    kind, _, index = address.partition("/")
    if (
        kind not in (EDGE, DEVICE)
        or not (index.isascii() and index.isdigit() and len(index) < LONGEST_INDEX)
        or (index != str(int(index)))
    ):
        raise ConfigError(
            f"unknown address {address!r}; allowed: {CLOUD}, {EDGE}/<index>, {DEVICE}/<index>"
        )
    return kind, int(index)


_CLASSES: Final = {
    (DEVICE, DEVICE): LinkClass.D2D,
    (DEVICE, EDGE): LinkClass.UPLINK,
    (EDGE, DEVICE): LinkClass.DOWNLINK,
    (EDGE, CLOUD): LinkClass.BACKHAUL,
    (CLOUD, EDGE): LinkClass.BACKHAUL,
}


def link_between(src: str, dst: str) -> LinkClass:
    """Class of the link from address ``src`` to address ``dst``.

    Raises:
        ConfigError: An unknown address, or nodes that no link joins.
    """
    link = _CLASSES.get((node_of(src)[0], node_of(dst)[0]))
    if link is None or src == dst:
        raise ConfigError(
            f"no link from {src} to {dst}; there are device-device, device-edge and edge-cloud"
        )
    return link


class Ledger:
    """Transfers on their way into the record of a run; safe for use by several threads."""

    def __init__(self) -> None:
        self._rows: list[Transfer] = []
        self._lock = threading.Lock()

    def add(self, transfer: Transfer) -> None:
        """Append one row."""
        self.extend([transfer])

    def extend(self, transfers: Iterable[Transfer]) -> None:
        """Append rows, with no others in between."""
        new = list(transfers)
        with self._lock:
            self._rows += new

    def take(self, t: int) -> tuple[Transfer, ...]:
        """Remove and return the rows of round ``t``.

        They come in the order phase, step, sender, receiver (by index, not by spelling); rows
        equal in all, in the order in which they were added.
        """
        with self._lock:
            taken = [row for row in self._rows if row.t == t]
            self._rows = [row for row in self._rows if row.t != t]
        return tuple(sorted(taken, key=lambda r: (r.order, node_of(r.src), node_of(r.dst))))

    @property
    def rows(self) -> tuple[Transfer, ...]:
        """What was added and not yet taken."""
        with self._lock:
            return tuple(self._rows)


def traffic(
    transfers: Iterable[Transfer], phases: Iterable[Phase] = PRICED
) -> dict[LinkClass, tuple[int, int]]:
    """Bytes of tensors and of headers over every class of links, in those ``phases``."""
    wanted = frozenset(phases)
    sums = {link: (0, 0) for link in LinkClass}
    for row in transfers:
        if row.phase in wanted:
            tensors, headers = sums[row.link]
            sums[row.link] = (tensors + row.bytes, headers + row.header_bytes)
    return sums


def to_line(t: int, transfers: Sequence[Transfer]) -> str:
    """JSON text of one round's transfers, without a line break.

    ``modules`` lists every ``[name, size]`` once: a module has several where messages hold
    several ranks of it. A transfer is ``[phase, step, src, dst, link, header_bytes,
    [place in modules, ...]]``.

    Raises:
        ConfigError: A transfer is of another round than ``t``.
    """
    known: dict[tuple[str, int], int] = {}
    rows = []
    for row in transfers:
        if row.t != t:
            raise ConfigError(f"a transfer of round {row.t} in the line of round {t}")
        parts = zip(row.modules, row.sizes, strict=True)
        places = [known.setdefault(part, len(known)) for part in parts]
        rows.append([row.phase, row.step, row.src, row.dst, row.link, row.header_bytes, places])
    line = {"t": t, "modules": list(known), "transfers": rows}
    return json.dumps(line, separators=(",", ":"))


def from_line(line: str) -> tuple[int, tuple[Transfer, ...]]:
    """Read round and transfers back from the text of `to_line`.

    Raises:
        ConfigError: The text is damaged.
    """
    try:
        data = json.loads(line)
        t, known = int(data["t"]), [(name, size) for name, size in data["modules"]]
        transfers = tuple(
            Transfer(t, Phase(phase), step, src, dst, LinkClass(link), header,
                     tuple(known[place][0] for place in places),
                     tuple(known[place][1] for place in places))
            for phase, step, src, dst, link, header, places in data["transfers"]
        )  # fmt: skip
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"not a line of transfers: {line[:80]!r} ({error})") from error
    return t, transfers
