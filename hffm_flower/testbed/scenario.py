"""Faults on the wire: what happens to which links, from which edge round on, for how long.

A file holds scenarios by name, each a list of faults:

    calm = []

    [[link-cut]]
    what = "cut"
    where = "link/3"
    round = 2
    seconds = 20
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from hffm_flower.config import read_toml
from hffm_flower.errors import ConfigError
from hffm_flower.ledger import CLOUD, DEVICE, EDGE
from hffm_flower.routes import Link
from hffm_flower.sections import Section
from hffm_flower.testbed.link import Quality
from hffm_flower.topology import Topology

Ends = tuple[str, str]
"""Sender and receiver, as in the ledger."""

FORMS: Final = (
    "all, cloud, edge/E, device/K, cluster/E (what joins the cluster to the others), "
    "link/N (the N-th D2D link) or A-B (two nodes that have a link)"
)
LONGEST_S: Final = 7 * 86400.0
LONGEST_MS: Final = 60_000.0
SLOWEST_MBIT_S: Final = 1e-3
FASTEST_MBIT_S: Final = 1e6
LONGEST_NAME: Final = 60
LONGEST_NUMBER: Final = 9
"""Digits of a place."""


class Fault(Section):
    """Something that happens to some links, in both directions.

    Attributes:
        what: ``cut``; ``slow``, to ``mbit-s`` at most; ``loss``, of a ``share`` of the packets;
            ``delay``, by ``ms`` more.
        where: Which links; see `FORMS`.
        round: It begins when the first cluster begins this edge round.
        after_s: So much later [s].
        seconds: How long it lasts [s]; 0: to the end.
        mbit_s: Rate [Mbit/s].
        share: Of packets.
        ms: Delay [ms].
        jitter_ms: With ``delay``: standard deviation of a normal draw whose magnitude is added
            for each packet [ms].
    """

    what: Literal["cut", "slow", "loss", "delay"]
    where: str = "all"
    round: int = Field(1, ge=1)
    after_s: float = Field(0.0, ge=0, le=LONGEST_S)
    seconds: float = Field(0.0, ge=0, le=LONGEST_S)
    mbit_s: float | None = Field(None, ge=SLOWEST_MBIT_S, le=FASTEST_MBIT_S)
    share: float | None = Field(None, gt=0, le=1)
    ms: float | None = Field(None, gt=0, le=LONGEST_MS)
    jitter_ms: float | None = Field(None, gt=0, le=LONGEST_MS)

    def applied(self, quality: Quality) -> Quality:
        """What a link that is so becomes."""
        return _EFFECTS[self.what](quality, self)

    def told(self) -> str:
        """In a few words."""
        amount = {"slow": f" to {self.mbit_s} Mbit/s", "loss": f" of {self.share:.1%}"
                  if self.share else "", "delay": f" of {self.ms} ms"
                  + (f" +- {self.jitter_ms}" if self.jitter_ms else "")}  # fmt: skip
        for_s = f", {self.seconds:g} s" if self.seconds else ""
        return f"{self.what}{amount.get(self.what, '')} at {self.where}, round {self.round}{for_s}"


def _slow(quality: Quality, fault: Fault) -> Quality:
    rate = min(quality.rate_bit_s, 1e6 * (fault.mbit_s or 0.0))
    return dataclasses.replace(quality, rate_bit_s=rate)


def _loss(quality: Quality, fault: Fault) -> Quality:
    both = 1.0 - (1.0 - quality.loss) * (1.0 - (fault.share or 0.0))
    return dataclasses.replace(quality, loss=both)


def _delay(quality: Quality, fault: Fault) -> Quality:
    delay_s = quality.delay_s + (fault.ms or 0.0) / 1e3
    jitter_s = math.hypot(quality.jitter_s, (fault.jitter_ms or 0.0) / 1e3)
    return dataclasses.replace(quality, delay_s=delay_s, jitter_s=jitter_s)


_EFFECTS: Final[Mapping[str, Callable[[Quality, Fault], Quality]]] = {
    "cut": lambda quality, fault: dataclasses.replace(quality, cut=True),
    "slow": _slow,
    "loss": _loss,
    "delay": _delay,
}
_AMOUNTS: Final = {"slow": "mbit_s", "loss": "share", "delay": "ms"}
"""What must be said of each kind of fault, and of no other."""

Scenario = tuple[Fault, ...]
_FILE: Final = TypeAdapter(dict[str, tuple[Fault, ...]])


def load_scenarios(path: Path, topology: Topology, rounds: int) -> dict[str, Scenario]:
    """Read and check a file of scenarios.

    Raises:
        ConfigError: It cannot be read, or a fault in it cannot be.
    """
    table = read_toml(path, "the scenarios")
    for name, faults in table.items():
        if not isinstance(faults, list):
            raise ConfigError(
                f"{path}: {name!r:.80} is no list; write [[{name:.80}]] or {name:.80} = []"
            )
    try:
        scenarios = _FILE.validate_python(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {key}: {first['input']!r:.200}: {first['msg']}") from error
    if not scenarios:
        raise ConfigError(f"{path} holds no scenario: [[NAME]] tables, or NAME = []")
    for name, faults in scenarios.items():
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"{path}: {name!r} cannot name a folder: letters, digits, - and _")
        if len(name) > LONGEST_NAME:
            raise ConfigError(
                f"{path}: {name!r:.80} has {len(name)} letters; allowed: up to {LONGEST_NAME}"
            )
        for number, fault in enumerate(faults):
            try:
                _check(fault, topology, rounds)
            except ConfigError as error:
                raise ConfigError(f"{path}: {name}.{number}: {error}") from error
    return scenarios


def _check(fault: Fault, topology: Topology, rounds: int) -> None:
    links_at(fault.where, topology)
    if fault.round > rounds:
        raise ConfigError(f"round = {fault.round}; the run has {rounds} edge rounds")
    for name in _AMOUNTS.values():
        wanted, key = _AMOUNTS.get(fault.what) == name, name.replace("_", "-")
        if wanted is (getattr(fault, name) is None):
            verb = "needs" if wanted else "has no use for"
            raise ConfigError(f"what = {fault.what!r} {verb} {key}")
    if fault.jitter_ms is not None and fault.what != "delay":
        raise ConfigError(f"what = {fault.what!r} has no use for jitter-ms")


def links_at(where: str, topology: Topology) -> frozenset[Ends]:
    """The links that ``where`` means, in both directions.

    Raises:
        ConfigError: There is no such thing.
    """
    links = _all(topology, topology.audible())
    kind, number = _numbered(where)
    if where == "all":
        return links
    if kind == "link" and 0 <= number < len(topology.links):
        one, other = topology.links[number]
        return _both(f"{DEVICE}/{one}", f"{DEVICE}/{other}")
    if kind == "cluster" and 0 <= number < topology.edges:
        inside = {f"{EDGE}/{number}", *(f"{DEVICE}/{k}" for k in topology.clusters[number])}
        return frozenset(ends for ends in links if len(inside.intersection(ends)) == 1)
    a, dash, b = where.partition("-")
    found = _both(a, b) if dash else frozenset(ends for ends in links if where in ends)
    if not found or (dash and not found <= _all(topology, topology.directed())):
        raise ConfigError(
            f"where = {where!r:.80} is no place in this tree of {topology.edges} edges, "
            f"{topology.devices} devices and {len(topology.links)} D2D links; allowed: {FORMS}"
        )
    return found


def _all(topology: Topology, pairs: Iterable[Link]) -> frozenset[Ends]:
    found: set[Ends] = set()
    for edge, members in enumerate(topology.clusters):
        found |= _both(f"{EDGE}/{edge}", CLOUD)
        for device in members:
            found |= _both(f"{DEVICE}/{device}", f"{EDGE}/{edge}")
    return frozenset(found | {(f"{DEVICE}/{a}", f"{DEVICE}/{b}") for a, b in pairs})


def _both(a: str, b: str) -> frozenset[Ends]:
    return frozenset({(a, b), (b, a)})


def _numbered(where: str) -> tuple[str, int]:
    kind, _, number = where.partition("/")
    plain = number.isascii() and number.isdigit() and len(number) <= LONGEST_NUMBER
    return kind, int(number) if plain else -1
