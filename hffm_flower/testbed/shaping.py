"""What the links of a tree are in an edge round, by the radio model.

A link's rate is that of its share of the band, which it has for the whole round: of a cell's band
each device has one part, up and down; of a cluster's D2D band each sender has one, and all but one
device may send at once. So who sends alone gets no more than in a crowd. With
``radio.sharing = "fixed"`` every link has the whole band. The backhaul is as it is set.
"""

from __future__ import annotations

from hffm_flower.ledger import CLOUD, DEVICE, EDGE, LinkClass
from hffm_flower.testbed.link import Quality
from hffm_flower.wireless.network import Block, Hop, Network
from hffm_flower.wireless.rate import latency_s

Ends = tuple[str, str]
"""Sender and receiver, as in the ledger."""


def sharers(block: Block, hop: Hop) -> int:
    """Among how many the band of a link is shared."""
    if hop.link is LinkClass.BACKHAUL:
        return 1
    members = len(block.topology.clusters[block.edge_of[hop.device]])
    return max(1, members - 1) if hop.link is LinkClass.D2D else members


def cell_links(network: Network, edge: int, t: int) -> dict[Ends, Quality]:
    """Links of an edge, its devices and the backhaul in edge round ``t``, both ways."""
    block = network.block(t)
    members = set(network.topology.clusters[edge])
    here = f"{EDGE}/{edge}"
    ends: list[Ends] = [(here, CLOUD), (CLOUD, here)]
    for device in sorted(members):
        ends += [(f"{DEVICE}/{device}", here), (here, f"{DEVICE}/{device}")]
    ends += [
        (f"{DEVICE}/{a}", f"{DEVICE}/{b}") for a, b in network.topology.audible() if a in members
    ]
    hops = [block.hop(*each) for each in ends]
    rates = block.rates_bit_s(hops, [sharers(block, hop) for hop in hops]).tolist()
    delay_s = network.radio.backhaul.delay_s
    return {
        each: Quality(rate, delay_s if hop.link is LinkClass.BACKHAUL else 0.0)
        for each, hop, rate in zip(ends, hops, rates, strict=True)
    }


def modelled_s(network: Network, ends: Ends, t: int, size: int) -> float:
    """Time of ``size`` bytes over a link in edge round ``t``, with its share of the band [s]."""
    block = network.block(t)
    hop = block.hop(*ends)
    rate = block.rate_bit_s(*ends, sharers(block, hop))
    wait_s = network.radio.backhaul.delay_s if hop.link is LinkClass.BACKHAUL else 0.0
    return wait_s + float(latency_s(8.0 * size, rate))
