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
from hffm_flower.wireless.channel import ChannelModel, channel_of
from hffm_flower.wireless.energy import Activity, Receive, Transmit
from hffm_flower.wireless.rate import SHARING, Backhaul, latency_s, noise_w_hz, rate_bit_s
from hffm_flower.wireless.units import Array, not_negative, positive

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Radio:
    """What all nodes of a kind have in common.

    Attributes:
        channel: Between a device and its edge, as `channel_of` takes it.
        d2d_channel: The same between devices; empty: as ``channel``.
        tx_power_w: Of a device [W].
        bandwidth_hz: Band of a cell, for the uplink and again for the downlink [Hz].
        noise_figure_db: Of every receiver [dB].
        sharing: Name in `SHARING`: how those who send at once share a band.
        edge_tx_power_w: Of an edge, to each device that it sends to [W].
        amplifier_efficiency: Of who sends over the air: radiated over drawn power, in (0, 1].
        rx_power_w: Of a device while it receives [W].
        d2d_bandwidth_hz: Band of a cluster's D2D links [Hz]; none: as `bandwidth_hz`.
        backhaul: Wire between every edge and the cloud.
        backhaul_power_w: Drawn at the sender for the time on the backhaul [W].
        flops_per_s: Floating point operations of a device per second [1/s].
        cpu_hz: Clock of a device [Hz].
        kappa: Effective switched capacitance of a device [J s^2 / cycle].
        battery_j: Energy of a device's full battery [J].

    Raises:
        ConfigError: An unknown name or a quantity that is not allowed.
    """

    channel: str = "rayleigh"
    d2d_channel: str = ""
    tx_power_w: float = 0.2
    bandwidth_hz: float = 1e6
    noise_figure_db: float = 0.0
    sharing: str = "fdma"
    edge_tx_power_w: float = 1.0
    amplifier_efficiency: float = 1.0
    rx_power_w: float = 0.1
    d2d_bandwidth_hz: float | None = None
    backhaul: Backhaul = field(default_factory=Backhaul)
    backhaul_power_w: float = 0.8
    flops_per_s: float = 1e10
    cpu_hz: float = 1e9
    kappa: float = 1e-28
    battery_j: float = 1e4

    def __post_init__(self) -> None:
        for link in (LinkClass.UPLINK, LinkClass.D2D):
            self.law(link)
            self.sender_w(link)
        one_of("sharing", self.sharing, SHARING)
        for name in ("tx_power_w", "bandwidth_hz", "edge_tx_power_w", "flops_per_s", "cpu_hz",
                     "battery_j"):  # fmt: skip
            positive(name, getattr(self, name))
        for name in ("noise_figure_db", "rx_power_w", "backhaul_power_w", "kappa"):
            not_negative(name, getattr(self, name))
        if self.d2d_bandwidth_hz is not None:
            positive("d2d_bandwidth_hz", self.d2d_bandwidth_hz)

    def law(self, link: LinkClass) -> ChannelModel:
        """Channel of that class of radio links."""
        return channel_of(self.d2d_channel if self.d2d_channel and link is LinkClass.D2D
                          else self.channel)  # fmt: skip

    def band_hz(self, link: LinkClass) -> float:
        """Band of that class of radio links, before it is shared [Hz]."""
        if link is LinkClass.D2D and self.d2d_bandwidth_hz is not None:
            return self.d2d_bandwidth_hz
        return self.bandwidth_hz

    def radiated_w(self, link: LinkClass) -> float:
        """Power of the sender's signal over that class of radio links [W]."""
        return self.edge_tx_power_w if link is LinkClass.DOWNLINK else self.tx_power_w

    def sender_w(self, link: LinkClass) -> float:
        """Power that the sender draws while sending [W]."""
        if link is LinkClass.BACKHAUL:
            return self.backhaul_power_w
        model = Transmit(self.radiated_w(link), self.amplifier_efficiency)
        return float(model.energy_j(Activity(sent_s=1.0)))

    def receiver_w(self, link: LinkClass) -> float:
        """Power that the receiver draws while receiving [W]; only devices count."""
        if link in (LinkClass.UPLINK, LinkClass.BACKHAUL):
            return 0.0
        return float(Receive(self.rx_power_w).energy_j(Activity(received_s=1.0)))


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
        near = self.beyond is not None and bool(self.topology.links)
        return (a, b) in self.link_gain or (near and self.edge_of[a] == self.edge_of[b])

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
            found = self.link_gain.get((hop.src, hop.dst))
            if found is None and self.beyond is not None:
                found = self.beyond(min(hop.src, hop.dst), max(hop.src, hop.dst))
            return 0.0 if found is None else found
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

        return Block(topology, self.radio, uplink, both, beyond)
