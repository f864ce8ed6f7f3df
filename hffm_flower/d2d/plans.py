"""How plans are made: relay to a head, gossip, cooperative training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from hffm_flower.d2d.cluster import Cluster
from hffm_flower.d2d.gossip import metropolis, rounds
from hffm_flower.d2d.plan import EDGE, Delivery, PeerStep, Plan
from hffm_flower.d2d.trees import HEADS, Candidate, arborescence, carried, depths, relay_tree
from hffm_flower.errors import ConfigError, one_of
from hffm_flower.modules import ModuleKey
from hffm_flower.routes import Link
from hffm_flower.seeding import generator


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Settings of the planners.

    Attributes:
        head: Relay: what the head is chosen by, a name in `HEADS`.
        summing: Relay: merge on the way; False: forward one by one. Gossip always merges.
        accuracy: Gossip: what may be left of the distance from the mean, in (0, 1).
        segments: Cooperative: parts of local training.

    Raises:
        ConfigError: One of them is not allowed.
    """

    head: str = "latency"
    summing: bool = True
    accuracy: float = 1e-3
    segments: int = 2

    def __post_init__(self) -> None:
        one_of("head policy", self.head, HEADS)
        if not 0.0 < self.accuracy < 1.0:
            raise ConfigError(f"gossip accuracy {self.accuracy} is not allowed; 0 < accuracy < 1")
        if self.segments < 1:
            raise ConfigError(f"{self.segments} segments are not allowed; at least 1")


def _relay(cluster: Cluster, options: PlanOptions) -> Plan:
    """Everything flows along a tree to the head, which alone uploads."""
    sends: dict[int, dict[int, dict[int, dict[ModuleKey, float]]]] = {}
    uploads: dict[int, tuple[ModuleKey, ...]] = {}
    down: list[Delivery] = []
    for component in cluster.components(cluster.devices):
        best = relay_tree(cluster, component, head=options.head, summing=options.summing)
        union = carried(cluster, best.parent, best.head)
        depth = depths(best.parent, best.head)
        for node, up in best.parent.items():
            if union[node]:
                shares = dict.fromkeys(sorted(union[node]), 1.0)
                sends.setdefault(depth[node], {})[node] = {up: shares}
        if union[best.head]:
            uploads[best.head] = tuple(sorted(union[best.head]))
        down.extend(_down(cluster, best))
    steps = tuple(PeerStep(dict(sorted(sends[d].items()))) for d in sorted(sends, reverse=True))
    return Plan(
        "relay", _ordered(down), steps, dict(sorted(uploads.items())), {}, 1, options.summing
    )


def _down(cluster: Cluster, best: Candidate) -> list[Delivery]:
    """From the edge to the head and along its tree: to each what it and those below lack."""
    depth = depths(best.parent, best.head)
    lacks = {node: cluster.needs(node) for node in depth}
    hops = []
    for node in depth:
        lacks[node] -= frozenset(cluster.has.get(node, ()))
        up = best.parent.get(node, EDGE)
        if up != EDGE:
            lacks[up] |= lacks[node]
        if lacks[node]:
            hops.append(Delivery(up, node, tuple(sorted(lacks[node])), depth[node]))
    return hops


def _by_uplink(cluster: Cluster) -> list[int]:
    return sorted(cluster.devices, key=lambda d: (cluster.uplink_s[d], d))


def _by_lot(cluster: Cluster) -> list[int]:
    devices = cluster.devices
    order = generator(cluster.seed, "upload", cluster.t).permutation(len(devices))
    return [devices[n] for n in order]


def _gossip(cluster: Cluster, options: PlanOptions) -> Plan:
    """Mass diffuses among the holders until each has the mean; cheap uplinks upload."""
    return _averaging("gossip", cluster, options, _by_uplink(cluster), 1)


def _cooperative(cluster: Cluster, options: PlanOptions) -> Plan:
    """Gossip between the segments of training; devices drawn by lot upload.

    Source: Lin et al. 2021, "Semi-decentralized federated learning with cooperative D2D local
    model aggregations" (TT-HF), arXiv 2103.10481.
    """
    return _averaging("cooperative", cluster, options, _by_lot(cluster), options.segments)


def _averaging(
    kind: str, cluster: Cluster, options: PlanOptions, preferred: list[int], segments: int
) -> Plan:
    if not options.summing:
        raise ConfigError(
            f"D2D plan {kind!r} averages on the way and cannot do without summing; "
            f"plans that can: {', '.join(FORWARDING)}"
        )
    groups = {key: cluster.components(cluster.holders(key)) for key in cluster.modules}
    weights = {
        group: metropolis(group, cluster.link_s) for parts in groups.values() for group in parts
    }
    most = max((rounds(g, w, options.accuracy) for g, w in weights.items()), default=0)
    sends: dict[int, dict[int, dict[ModuleKey, float]]] = {}
    for key, parts in groups.items():
        for group in parts:
            for (i, j), share in weights[group].items():
                sends.setdefault(i, {}).setdefault(j, {})[key] = share
    step = PeerStep({i: dict(sorted(out.items())) for i, out in sorted(sends.items())})
    uploads: dict[int, list[ModuleKey]] = {}
    for key, parts in groups.items():
        for group in parts:
            order = [d for d in preferred if d in group]
            uploader = next((d for d in order if d in uploads), order[0])
            uploads.setdefault(uploader, []).append(key)
    return Plan(
        kind,
        relay_modules(cluster),
        (step,) * most,
        {d: tuple(uploads[d]) for d in sorted(uploads)},
        groups,
        segments,
    )


PLANS: Final[Mapping[str, Callable[[Cluster, PlanOptions], Plan]]] = {
    "relay": _relay,
    "gossip": _gossip,
    "cooperative": _cooperative,
}
"""Planners by name: all mass to one head per connected component; averaging among neighbours
before the upload; averaging between parts of local training as well."""
FORWARDING: Final = ("relay",)
"""Plans that can forward one by one, without summing."""


def make_plan(kind: str, cluster: Cluster, options: PlanOptions) -> Plan:
    """Plan of the kind ``kind`` for this round.

    Raises:
        ConfigError: Unknown kind, or options that it cannot serve.
    """
    return PLANS[one_of("D2D plan", kind, PLANS)](cluster, options)


def check_summable(rule_name: str, summable: bool, plan_kind: str, summing: bool) -> None:
    """Refuse to sum on the way what may not be summed.

    Raises:
        ConfigError: Unknown plan, or it sums and the rule ``rule_name`` is not ``summable``.
    """
    one_of("D2D plan", plan_kind, PLANS)
    if not summable and (summing or plan_kind not in FORWARDING):
        raise ConfigError(
            f"D2D plan {plan_kind!r} sums updates on the way, which {rule_name!r} does not allow; "
            f"allowed: plan {', '.join(FORWARDING)} with d2d.summing = false, or a summable rule"
        )


def relay_modules(cluster: Cluster) -> tuple[Delivery, ...]:
    """Deliveries by which every device gets the modules that it needs and has not.

    Per module a minimum spanning arborescence [s/bit] whose root stands for the edge and for
    all that have the module: a device takes it from a neighbour where that link is cheaper
    than its own downlink.
    """
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], list[tuple[int, Link]]] = {}
    hops: list[Delivery] = []
    for key in cluster.modules:
        takers = tuple(d for d in cluster.holders(key) if key in cluster.needs(d))
        owners = tuple(d for d in cluster.devices if key in cluster.has.get(d, ()))
        if (takers, owners) not in found:
            found[takers, owners] = _fetch(cluster, takers, owners)
        hops.extend(Delivery(a, b, (key,), n) for n, (a, b) in found[takers, owners])
    return _ordered(hops)


def _fetch(
    cluster: Cluster, takers: tuple[int, ...], owners: tuple[int, ...]
) -> list[tuple[int, Link]]:
    links = cluster.link_s
    first = {}
    among = set(takers)
    cost = {(a, b): s for (a, b), s in links.items() if a in among and b in among}
    for taker in takers:
        ways = [(links[d, taker], d) for d in owners if (d, taker) in links]
        cost[EDGE, taker], first[taker] = min([(cluster.downlink_s[taker], EDGE), *ways])
    parent = arborescence(cost, EDGE, takers)
    depth = depths(parent, EDGE)
    return [(depth[b] - 1, (first[b] if a == EDGE else a, b)) for b, a in parent.items()]


def _ordered(hops: list[Delivery]) -> tuple[Delivery, ...]:
    """One delivery per step, source and destination, in this order."""
    keys: dict[tuple[int, int, int], set[ModuleKey]] = {}
    for hop in hops:
        keys.setdefault((hop.step, hop.src, hop.dst), set()).update(hop.keys)
    return tuple(Delivery(a, b, tuple(sorted(keys[n, a, b])), n) for n, a, b in sorted(keys))
