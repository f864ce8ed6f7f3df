"""A topology under a radio channel: gains drawn anew every edge round, and what links cost.

Block fading: a gain holds for one edge round. It is the same in both directions of a link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from hffm_flower.errors import ConfigError, one_of
from hffm_flower.ledger import DEVICE, EDGE, LinkClass, link_between, node_of
from hffm_flower.placement import Layout
from hffm_flower.routes import Link
from hffm_flower.seeding import generator
from hffm_flower.topology import ASSOCIATIONS, Topology, check_positions, distances_m, link_devices
from hffm_flower.wireless.radio import Radio
from hffm_flower.wireless.rate import SHARING, latency_s, noise_w_hz, rate_bit_s
from hffm_flower.wireless.units import Array, not_negative

Key = TypeVar("Key")


class Hop(NamedTuple):
    """A link of the network and a direction: indices among devices or edges, cloud 0."""

    link: LinkClass
    src: int
    dst: int

    @property
    def device(self) -> int:
        """The device at the link: of two the sender; -1 on the backhaul."""
        other = {LinkClass.DOWNLINK: self.dst, LinkClass.BACKHAUL: -1}
        return other.get(self.link, self.src)


class Costs(NamedTuple):
    """Per bit, for who has the band alone: seconds [s/bit] and joules [J/bit].

    Joules are the sender's, plus those of a device that receives.
    """

    link_s: Mapping[Link, float]
    link_j: Mapping[Link, float]
    uplink_s: Mapping[int, float]
    uplink_j: Mapping[int, float]
    downlink_s: Mapping[int, float]
    downlink_j: Mapping[int, float]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The channel of one edge round.

    Attributes:
        topology: Who stands where.
        radio: What they send and receive with.
        uplink_gain: Between each device and its edge, both ways ``[N]`` [1].
        link_gain: Of both directions of every D2D link [1].
        beyond: Gain of another pair of a cluster, low and high; none: there are no other links.
        edge_of: Index of each device's edge.

    Raises:
        ConfigError: Gains that do not fit the topology, or below 0.
    """

    topology: Topology
    radio: Radio
    uplink_gain: Array
    link_gain: Mapping[Link, float]
    beyond: Callable[[int, int], float] | None = None
    edge_of: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        not_negative("uplink_gain", self.uplink_gain)
        not_negative("link_gain", list(self.link_gain.values()))
        if self.uplink_gain.shape != (self.topology.devices,):
            raise ConfigError(
                f"{list(self.uplink_gain.shape)} uplink gains for {self.topology.devices} devices"
            )
        if set(self.link_gain) != set(self.topology.directed()):
            raise ConfigError("the D2D gains are not those of the topology's links, both ways")
        object.__setattr__(self, "edge_of", tuple(self.topology.edge_of().tolist()))

    def hop(self, src: str, dst: str) -> Hop:
        """The link from address ``src`` to address ``dst``.

        Raises:
            ConfigError: This network has no such node or link.
        """
        link = link_between(src, dst)
        count = {DEVICE: self.topology.devices, EDGE: self.topology.edges}
        for kind, index in (ends := (node_of(src), node_of(dst))):
            if index >= count.get(kind, 1):
                raise ConfigError(
                    f"{src} -> {dst}: unknown {kind}/{index}; there are 0..{count[kind] - 1}"
                )
        hop = Hop(link, ends[0][1], ends[1][1])
        if link is LinkClass.D2D and not self._linked(hop.src, hop.dst):
            raise ConfigError(f"{src} -> {dst}: the two have no D2D link")
        if link in (LinkClass.UPLINK, LinkClass.DOWNLINK):
            home = f"{EDGE}/{self.edge_of[hop.device]}"
            if home not in (src, dst):
                raise ConfigError(f"{src} -> {dst}: {DEVICE}/{hop.device} belongs to {home}")
        return hop

    def _linked(self, a: int, b: int) -> bool:
        near = self.beyond is not None and self.edge_of[a] == self.edge_of[b]
        return near or (a, b) in self.link_gain

    def rates_bit_s(self, hops: Sequence[Hop], sharers: ArrayLike = 1) -> Array:
        """Rates of links [bit/s], vectorised.

        Args:
            hops: The links.
            sharers: How many send at once in the band of each; the backhaul shares nothing.
        """
        radio = self.radio
        band_hz = np.array([radio.band_hz(hop.link) for hop in hops])
        wired = np.array([hop.link is LinkClass.BACKHAUL for hop in hops], dtype=np.bool_)
        air = rate_bit_s(
            np.array([self._gain(hop) for hop in hops]),
            tx_power_w=np.array([radio.radiated_w(hop.link) for hop in hops]),
            bandwidth_hz=SHARING[radio.sharing](band_hz, sharers),
            noise_w_hz=noise_w_hz(radio.noise_figure_db),
        )
        return np.where(wired, radio.backhaul.rate_bit_s, air)

    def rate_bit_s(self, src: str, dst: str, sharers: int = 1) -> float:
        """Rate from address to address while ``sharers`` send in the same band [bit/s].

        Raises:
            ConfigError: No such link, or less than one sender.
        """
        return float(self.rates_bit_s([self.hop(src, dst)], sharers)[0])

    def costs(self, members: Iterable[int]) -> Costs:
        """What a bit costs over the D2D links among ``members`` and to and from their edge.

        A link of rate 0 costs infinitely much.

        Raises:
            ConfigError: An unknown device.
        """
        devices = sorted(set(members))
        if devices and not 0 <= devices[0] <= devices[-1] < self.topology.devices:
            raise ConfigError(f"unknown device in {devices}; 0..{self.topology.devices - 1}")
        pairs = [pair for pair in self.topology.among(devices) if self._linked(*pair)]
        return Costs(
            *self._per_bit(pairs, [Hop(LinkClass.D2D, *pair) for pair in pairs]),
            *self._per_bit(devices, [Hop(LinkClass.UPLINK, d, self.edge_of[d]) for d in devices]),
            *self._per_bit(devices, [Hop(LinkClass.DOWNLINK, self.edge_of[d], d) for d in devices]),
        )

    def _per_bit(
        self, keys: Sequence[Key], hops: Sequence[Hop]
    ) -> tuple[dict[Key, float], dict[Key, float]]:
        """Seconds and joules of a bit over each of ``hops``."""
        spent_s = latency_s(1.0, self.rates_bit_s(hops))
        drawn_w = [self.radio.sender_w(h.link) + self.radio.receiver_w(h.link) for h in hops]
        spent_j = spent_s * np.array(drawn_w)
        by_key = [dict(zip(keys, each.tolist(), strict=True)) for each in (spent_s, spent_j)]
        return by_key[0], by_key[1]

    def _gain(self, hop: Hop) -> float:
        if hop.link is LinkClass.D2D:
            if self.beyond is None or (hop.src, hop.dst) in self.link_gain:
                return self.link_gain[hop.src, hop.dst]
            return self.beyond(min(hop.src, hop.dst), max(hop.src, hop.dst))
        if hop.link is LinkClass.BACKHAUL:
            return 0.0
        return float(self.uplink_gain[hop.device])


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """Who stands where, what they send with, and the seed of their channels."""

    topology: Topology
    radio: Radio
    seed: int

    @classmethod
    def of(
        cls,
        layout: Layout,
        radio: Radio,
        seed: int,
        *,
        associate: str = "cluster",
        links: str | None = "radius",
        reach: float | None = None,
    ) -> Self:
        """Associate devices with edges, by path gain where the rule asks for it, and link them.

        Without ``links`` no device hears another.

        Raises:
            ConfigError: An unknown name or a quantity that is not allowed.
        """
        check_positions("device", layout.positions_m)
        check_positions("edge", layout.edge_positions_m)
        choose = ASSOCIATIONS[one_of("association", associate, ASSOCIATIONS)]
        apart_m = distances_m(layout.positions_m, layout.edge_positions_m)
        groups = choose(layout.clusters, radio.law(LinkClass.UPLINK).path_gain(apart_m))
        linked = link_devices(layout.positions_m, groups, rule=links, reach=reach) if links else ()
        topology = Topology(layout.positions_m, layout.edge_positions_m, groups, linked)
        return cls(topology, radio, seed)

    def block(self, t: int) -> Block:
        """The channel of edge round ``t``; shadowing and fading are drawn anew for each.

        Equal seeds and rounds give equal gains.

        Raises:
            ConfigError: ``t`` is below 0.
        """
        if t < 0:
            raise ConfigError(f"edge round {t} has no channel; it must be >= 0")
        topology, model = self.topology, self.radio.law(LinkClass.D2D)
        uplink = self.radio.law(LinkClass.UPLINK).draw(
            topology.uplink_m(), generator(self.seed, "channel", "uplink", t)
        )
        ends = np.array(topology.links, dtype=np.int64).reshape(-1, 2)
        at_m = topology.positions_m
        apart_m = np.linalg.norm(at_m[ends[:, 0]] - at_m[ends[:, 1]], axis=1)
        drawn = model.draw(apart_m, generator(self.seed, "channel", "d2d", t)).tolist()
        gain = dict(zip(topology.links, drawn, strict=True))
        both = {(a, b): gain[min(a, b), max(a, b)] for a, b in topology.directed()}

        def beyond(a: int, b: int) -> float:
            rng = generator(self.seed, "channel", "d2d", t, a, b)
            apart_m = float(np.linalg.norm(at_m[a] - at_m[b]))
            return float(model.draw(np.array([apart_m]), rng)[0])

        return Block(topology, self.radio, uplink, both, beyond if topology.links else None)
