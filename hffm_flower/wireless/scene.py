"""A topology under a radio channel: rates of its links, heads, and the trees towards them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hffm_flower.ledger import LinkClass
from hffm_flower.placement import Layout
from hffm_flower.routes import Link, Routes, fastest_head, shortest_routes
from hffm_flower.topology import Topology
from hffm_flower.wireless.network import Hop, Network
from hffm_flower.wireless.radio import Radio
from hffm_flower.wireless.rate import latency_s
from hffm_flower.wireless.units import Array

PAYLOAD_BITS = 1e6
"""Payload by which heads and trees are chosen; no choice depends on it."""


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
    """Associate, link, draw the block before the first round, choose the fastest heads.

    Raises:
        ConfigError: An unknown name or a quantity that is not allowed.
    """
    network = Network.of(layout, radio, seed, associate=associate, links=links, reach=reach)
    topology, block = network.topology, network.block(0)
    groups, edge_of = topology.clusters, block.edge_of
    uplink = block.rates_bit_s(
        [Hop(LinkClass.UPLINK, d, e) for d, e in enumerate(edge_of)],
        [len(groups[e]) for e in edge_of],
    )
    pairs = topology.directed()
    rates = block.rates_bit_s([Hop(LinkClass.D2D, *pair) for pair in pairs])
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
