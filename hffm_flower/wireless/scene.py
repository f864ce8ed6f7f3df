"""A topology under a radio channel: rates of its links, heads, and the trees towards them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hffm_flower.errors import one_of
from hffm_flower.placement import Layout
from hffm_flower.routes import Link, Routes, fastest_head, shortest_routes
from hffm_flower.seeding import generator
from hffm_flower.topology import ASSOCIATIONS, Topology, distances_m, link_devices
from hffm_flower.wireless.channel import CHANNELS
from hffm_flower.wireless.rate import SHARING, latency_s, noise_w_hz, rate_bit_s
from hffm_flower.wireless.units import Array, not_negative, positive

PAYLOAD_BITS = 1e6
"""Payload by which heads and trees are chosen; no choice depends on it."""


@dataclass(frozen=True, slots=True)
class Radio:
    """What all senders have in common.

    Attributes:
        channel: Name in `CHANNELS`.
        tx_power_w: [W].
        bandwidth_hz: Band of a cell's uplink, and of each D2D link [Hz].
        noise_figure_db: Of every receiver [dB].
        sharing: Name in `SHARING`: how the devices of a cell share the uplink's band.
    """

    channel: str = "rayleigh"
    tx_power_w: float = 0.2
    bandwidth_hz: float = 1e6
    noise_figure_db: float = 0.0
    sharing: str = "fdma"

    def __post_init__(self) -> None:
        one_of("channel", self.channel, CHANNELS)
        one_of("sharing", self.sharing, SHARING)
        positive("tx_power_w", self.tx_power_w)
        positive("bandwidth_hz", self.bandwidth_hz)
        not_negative("noise_figure_db", self.noise_figure_db)

    def rates(self, gain: Array, *, bandwidth_hz: Array | float) -> Array:
        """Rates of links with those gains [bit/s]."""
        return rate_bit_s(
            gain,
            tx_power_w=self.tx_power_w,
            bandwidth_hz=bandwidth_hz,
            noise_w_hz=noise_w_hz(self.noise_figure_db),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A topology with one block's rates.

    Attributes:
        topology: Who stands where.
        uplink_rate_bit_s: ``[N]``.
        link_rate_bit_s: Of both directions of every D2D link.
        heads: Head of each cluster; none where the cluster is empty.
        trees: Paths to the head of each cluster with one.
    """

    topology: Topology
    uplink_rate_bit_s: Array
    link_rate_bit_s: Mapping[Link, float]
    heads: tuple[int | None, ...]
    trees: tuple[Routes, ...]


def survey(
    layout: Layout,
    *,
    radio: Radio,
    seed: int,
    associate: str = "cluster",
    links: str = "radius",
    reach: float | None = None,
) -> Scene:
    """Associate, link, draw one block of the channel, choose the fastest heads.

    Raises:
        ConfigError: An unknown name or a quantity that is not allowed.
    """
    model = CHANNELS[radio.channel]()
    choose = ASSOCIATIONS[one_of("association", associate, ASSOCIATIONS)]
    apart_m = distances_m(layout.positions_m, layout.edge_positions_m)
    gain_NE = model.draw(apart_m, generator(seed, "channel", "uplink"))
    groups = choose(layout.clusters, gain_NE)
    topology = Topology(
        layout.positions_m, layout.edge_positions_m, groups,
        link_devices(layout.positions_m, groups, rule=links, reach=reach),
    )  # fmt: skip
    edge_of = topology.edge_of()
    sharers = np.array([len(groups[e]) for e in edge_of])
    uplink = radio.rates(
        gain_NE[np.arange(topology.devices), edge_of],
        bandwidth_hz=SHARING[radio.sharing](radio.bandwidth_hz, sharers),
    )
    pairs = topology.directed()
    between_m = [float(np.linalg.norm(np.subtract(*topology.positions_m[[a, b]])))
                 for a, b in pairs]  # fmt: skip
    gain = model.draw(np.array(between_m), generator(seed, "channel", "d2d"))
    rates = radio.rates(gain, bandwidth_hz=radio.bandwidth_hz)
    heads, trees = _heads(groups, uplink, dict(zip(pairs, rates, strict=True)))
    return Scene(
        topology, uplink, dict(zip(pairs, rates.tolist(), strict=True)), heads, trees
    )  # fmt: skip


def _heads(
    groups: tuple[tuple[int, ...], ...], uplink: Array, rates: Mapping[Link, Array]
) -> tuple[tuple[int | None, ...], tuple[Routes, ...]]:
    up_s = latency_s(PAYLOAD_BITS, uplink)
    cost_s = {pair: float(latency_s(PAYLOAD_BITS, rate)) for pair, rate in rates.items()}
    heads: list[int | None] = []
    trees = []
    for members in groups:
        if not members:
            heads.append(None)
            continue
        inside = {pair: s for pair, s in cost_s.items() if pair[0] in members}
        head = fastest_head(inside, {m: float(up_s[m]) for m in members})
        heads.append(head)
        trees.append(shortest_routes(inside, head, nodes=members, towards=True))
    return tuple(heads), tuple(trees)
