"""How long messages took, beside what the radio model says.

Devices write when their messages went (`clients.timings`). A message between devices is measured
from its first chunk to its receipt. Its receiver may be still at work, and its radio is not then
what took the time; so the time until the receiver was ready is told apart, and only messages that
did not have to wait for it are compared with the model.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from hffm_flower.errors import HffmError
from hffm_flower.ledger import DEVICE, EDGE, LinkClass, link_between
from hffm_flower.testbed.shaping import modelled_s
from hffm_flower.wireless.network import Network

log = logging.getLogger(__name__)

PROMPT_S: Final = 0.05
"""A receiver that is ready so soon does not count as one that was waited for [s]."""
LAST_ROUND: Final = 2**31
LONGEST_S: Final = 7 * 86400.0
"""So long no message takes [s]."""
DIRECTIONS: Final = {"pulled": LinkClass.DOWNLINK, "pushed": LinkClass.UPLINK}

MALFORMED: Final = (HffmError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What comes of a line that no device would write."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One message.

    Attributes:
        t: Edge round; 0 where the message is of none.
        src: Sender, as in the ledger.
        dst: Receiver.
        link: Class of the link.
        bytes: Of the message; over Flower, of its tensors [byte].
        modelled_s: By the radio model, with the link's share of the band [s].
        measured_s: Between devices from the first chunk to the receipt; over Flower the time
            that the node spent on fetching or handing in the message [s].
        waited_s: Of that, until the receiver was ready [s].
        flower: Whether it went over Flower.
    """

    t: int
    src: str
    dst: str
    link: LinkClass
    bytes: int
    modelled_s: float
    measured_s: float
    waited_s: float = 0.0
    flower: bool = False

    def __post_init__(self) -> None:
        times = (self.modelled_s, self.measured_s, self.waited_s)
        possible = self.bytes > 0 < self.modelled_s and 0 <= self.t < LAST_ROUND
        if not possible or not all(0 <= s < LONGEST_S for s in times):
            raise ValueError(f"no message: {self}")

    @property
    def ratio(self) -> float:
        """Measured by modelled."""
        return self.measured_s / self.modelled_s

    @property
    def overhead_s(self) -> float:
        """What was measured beyond the model [s]."""
        return self.measured_s - self.modelled_s

    def to_json(self) -> dict[str, object]:
        """As it stands in ``testbed.json``."""
        return {**asdict(self), "ratio": self.ratio if self.comparable else None}

    @property
    def comparable(self) -> bool:
        """Whether nothing but the link took the time."""
        return not self.flower and self.waited_s <= PROMPT_S


@dataclass(frozen=True, slots=True)
class Summary:
    """Messages over one class of links.

    Attributes:
        link: Class.
        flower: Whether they went over Flower.
        messages: How many.
        bytes: Median size [byte].
        modelled_s: Median [s].
        measured_s: Median [s].
        ratio: Median of those that are comparable; none: there are none.
        overhead_s: Median of what was measured beyond the model [s].
        waited: How many waited for their receiver.
    """

    link: LinkClass
    flower: bool
    messages: int
    bytes: float
    modelled_s: float
    measured_s: float
    ratio: float | None
    overhead_s: float
    waited: int


def read_timings(folder: Path, network: Network) -> list[Timed]:
    """All messages that devices have timed, in the order of their edge rounds.

    Lines that are none of theirs are left out: devices are not trusted to write well.
    """
    sent: list[Timed] = []
    ready: dict[tuple[int, ...], float] = {}
    peers: list[tuple[int, Mapping[str, Any]]] = []
    for path in sorted(folder.glob("*.jsonl")):
        device = int(path.stem.rpartition("-")[2])
        for line in _lines(path):
            try:
                if line["kind"] == "peers":
                    turns = {(device, line["t"], *turn): at_s for *turn, at_s in line["ready"]}
                    peers.append((device, line))
                    ready |= turns
                elif line["bytes"]:
                    sent.append(_over_flower(network, device, line))
            except MALFORMED as error:
                log.warning("%s: a line is left out: %r", path, error)
    for device, line in peers:
        try:
            sent += list(_among_peers(network, device, line, ready))
        except MALFORMED as error:
            log.warning("device %d: a line is left out: %r", device, error)
    return sorted(sent, key=lambda message: (message.t, message.link, message.src, message.dst))


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    for number, text in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:  # a kill may have cut it short
            log.warning("%s, line %d is left out: %s", path, number, error)
            continue
        if isinstance(line, dict):
            yield line


def _among_peers(
    network: Network, device: int, line: Mapping[str, Any],
    ready: Mapping[tuple[int, ...], float],
) -> Iterator[Timed]:  # fmt: skip
    t = int(line["t"])
    for phase, segment, step, dst, size, began_s, ended_s in line["sent"]:
        ends = f"{DEVICE}/{device}", f"{DEVICE}/{dst}"
        at_s = ready.get((dst, t, phase, segment, step), began_s)
        yield Timed(
            t, *ends, LinkClass.D2D, size, modelled_s(network, ends, t, size), ended_s - began_s,
            max(0.0, min(at_s, ended_s) - began_s),
        )  # fmt: skip


def _over_flower(network: Network, device: int, line: Mapping[str, Any]) -> Timed:
    me, edge = f"{DEVICE}/{device}", f"{EDGE}/{network.block(0).edge_of[device]}"
    ends = (edge, me) if line["kind"] == "pulled" else (me, edge)
    group = str(line["group"])
    t = int(group) if group.isdigit() else 0
    return Timed(
        t, *ends, link_between(*ends), int(line["bytes"]),
        modelled_s(network, ends, t, int(line["bytes"])), line["ended_s"] - line["began_s"],
        flower=True,
    )  # fmt: skip


def summaries(messages: Iterable[Timed]) -> list[Summary]:
    """By class of links."""
    kinds: dict[tuple[LinkClass, bool], list[Timed]] = {}
    for message in messages:
        kinds.setdefault((message.link, message.flower), []).append(message)
    return [_summary(*kind, found) for kind, found in sorted(kinds.items())]


def _summary(link: LinkClass, flower: bool, found: list[Timed]) -> Summary:
    middle = statistics.median
    ratios = [message.ratio for message in found if message.comparable]
    return Summary(
        link, flower, len(found), middle(m.bytes for m in found),
        middle(m.modelled_s for m in found), middle(m.measured_s for m in found),
        middle(ratios) if ratios else None, middle(m.overhead_s for m in found),
        sum(m.waited_s > PROMPT_S for m in found),
    )  # fmt: skip
