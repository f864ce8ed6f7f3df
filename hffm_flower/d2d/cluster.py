"""What a planner knows: this round's participants, their modules and what sending costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hffm_flower.errors import ConfigError
from hffm_flower.modules import ModuleKey
from hffm_flower.routes import Link


@dataclass(frozen=True, slots=True)
class Cluster:
    """This round's participants of one cluster.

    Attributes:
        holds: Participant -> modules that it trains and shares; may be none.
        sizes: Size of each module [byte].
        link_s: Time on every directed D2D link between participants [s/bit].
        link_j: Energy on the same links, sender and receiver together [J/bit].
        uplink_s: Time from each participant to the edge, alone on the band [s/bit].
        uplink_j: Energy of the same [J/bit].
        downlink_s: Time from the edge to each participant, alone on the band [s/bit].
        downlink_j: Energy of the same [J/bit].
        battery_j: Residual energy of each participant [J].
        has: Participant -> modules whose current version it has already.
        t: Edge round.
        seed: Seed of the run.

    Raises:
        ConfigError: The parts do not fit together, or a number is not finite and >= 0.
    """

    holds: Mapping[int, tuple[ModuleKey, ...]]
    sizes: Mapping[ModuleKey, int]
    link_s: Mapping[Link, float]
    link_j: Mapping[Link, float]
    uplink_s: Mapping[int, float]
    uplink_j: Mapping[int, float]
    downlink_s: Mapping[int, float]
    downlink_j: Mapping[int, float]
    battery_j: Mapping[int, float]
    has: Mapping[int, tuple[ModuleKey, ...]] = field(default_factory=dict)
    t: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if bad := [d for d in self.holds if d < 0]:
            raise ConfigError(f"devices {sorted(bad)} are not allowed; an index is >= 0")
        self._check_modules()
        self._check_links()
        for name in ("uplink_s", "uplink_j", "downlink_s", "downlink_j", "battery_j"):
            table: Mapping[int, float] = getattr(self, name)
            if odd := sorted(table.keys() ^ self.holds.keys()):
                raise ConfigError(
                    f"{name} and the participants {list(self.devices)} differ in devices {odd}"
                )
            for device, value in table.items():
                _check_number(f"{name} of device {device}", value)

    @property
    def devices(self) -> tuple[int, ...]:
        """Participants, sorted."""
        return tuple(sorted(self.holds))

    @property
    def modules(self) -> tuple[ModuleKey, ...]:
        """Modules that someone trains, sorted."""
        return tuple(sorted({key for keys in self.holds.values() for key in keys}))

    def holders(self, key: ModuleKey) -> tuple[int, ...]:
        """Participants that train module ``key``, sorted."""
        return tuple(d for d in self.devices if key in self.holds[d])

    def bits(self, keys: Iterable[ModuleKey]) -> int:
        """Size of the modules ``keys`` together [bit]."""
        return 8 * sum(self.sizes[key] for key in keys)

    def needs(self, device: int) -> frozenset[ModuleKey]:
        """Modules that ``device`` trains and has not got yet."""
        return frozenset(self.holds[device]) - frozenset(self.has.get(device, ()))

    def components(self, nodes: Iterable[int]) -> tuple[tuple[int, ...], ...]:
        """Connected parts of ``nodes`` under the links between them, each sorted."""
        left = set(nodes)
        around: dict[int, list[int]] = {node: [] for node in left}
        for a, b in self.link_s:
            if a in left and b in left:
                around[a].append(b)
        parts = []
        while left:
            part, edge = set[int](), [min(left)]
            while edge:
                node = edge.pop()
                if node not in part:
                    part.add(node)
                    edge.extend(around[node])
            left -= part
            parts.append(tuple(sorted(part)))
        return tuple(parts)

    def _check_modules(self) -> None:
        if unknown := sorted(self.has.keys() - self.holds.keys()):
            raise ConfigError(f"'has' names unknown devices {unknown}; known: {self.devices}")
        for device, keys in self.holds.items():
            if len(set(keys)) < len(keys):
                raise ConfigError(f"device {device} holds a module twice: {_text(keys)}")
            if unsized := sorted(set(keys) - self.sizes.keys()):
                raise ConfigError(f"device {device} holds modules without size: {_text(unsized)}")
        for key, size in self.sizes.items():
            _check_number(f"size of {key}", size)

    def _check_links(self) -> None:
        if odd := sorted(self.link_s.keys() ^ self.link_j.keys()):
            raise ConfigError(f"link_s and link_j differ in links {odd}; give both for every link")
        for a, b in self.link_s:
            if a not in self.holds or b not in self.holds or a == b:
                raise ConfigError(
                    f"link {a}->{b} does not join two participants; they are {list(self.devices)}"
                )
            if (b, a) not in self.link_s:
                raise ConfigError(f"link {a}->{b} has no way back; give {b}->{a} as well")
            _check_number(f"link_s of {a}->{b}", self.link_s[a, b])
            _check_number(f"link_j of {a}->{b}", self.link_j[a, b])


def _check_number(what: str, value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise ConfigError(f"{what} is {value}; a finite number >= 0 is allowed")


def _text(keys: Iterable[ModuleKey]) -> str:
    return ", ".join(map(str, keys))
