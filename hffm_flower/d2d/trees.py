"""Relay trees of one connected component, and the choice of its head.

All trees are given as ``parent``: node -> next node towards the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hffm_flower.d2d.cluster import Cluster
from hffm_flower.errors import ConfigError
from hffm_flower.modules import ModuleKey
from hffm_flower.routes import Link, shortest_routes

Parents = Mapping[int, int]


def arborescence(cost: Mapping[Link, float], root: int, nodes: Iterable[int]) -> dict[int, int]:
    """Cheapest links by which every one of ``nodes`` is reached from ``root``.

    Args:
        cost: Cost >= 0 of each directed link.
        root: Where all paths begin.
        nodes: All nodes, the root among them or not.

    Returns:
        Node -> the node from which it is reached; the root has none.

    Raises:
        ConfigError: A node cannot be reached.

    Source: Edmonds 1967, "Optimum branchings".
    """
    wanted = set(nodes) - {root}
    ends = wanted | {root}
    links = [
        (value, a, b, (a, b))
        for (a, b), value in sorted(cost.items())
        if a in ends and b in wanted and a != b
    ]
    chosen = _edmonds(links, wanted)
    return {b: a for a, b in sorted(chosen)}


_Arc = tuple[float, int, int, Link]
"""Reduced cost, tail, head, and the link that it stands for."""


def _edmonds(arcs: list[_Arc], wanted: set[int]) -> set[Link]:
    best: dict[int, _Arc] = {}
    for arc in arcs:
        node = arc[2]
        if node not in best or arc[0] < best[node][0]:
            best[node] = arc
    if apart := sorted(wanted - best.keys()):
        raise ConfigError(f"no path of links from the root to nodes {apart}")
    cycle = _cycle({node: arc[1] for node, arc in best.items()})
    if not cycle:
        return {arc[3] for arc in best.values()}
    # Take the cycle for one node; an arc into it pays what it saves there.
    one = min(cycle)
    into: dict[Link, int] = {}
    fewer: list[_Arc] = []
    for value, a, b, link in arcs:
        if b in cycle and a not in cycle:
            into[link] = b
            fewer.append((value - best[b][0], a, one, link))
        elif b not in cycle:
            fewer.append((value, one if a in cycle else a, b, link))
    chosen = _edmonds(fewer, (wanted - cycle) | {one})
    entered = next(into[link] for link in sorted(chosen) if link in into)
    return chosen | {best[node][3] for node in cycle if node != entered}


def _cycle(previous: Parents) -> set[int]:
    safe: set[int] = set()
    for start in sorted(previous):
        path: list[int] = []
        node = start
        while node in previous and node not in safe and node not in path:
            path.append(node)
            node = previous[node]
        if node in path:
            return set(path[path.index(node) :])
        safe.update(path)
    return set()


def depths(parent: Parents, head: int) -> dict[int, int]:
    """Hops from each node to the head, deepest node first, then by index."""
    depth = {head: 0}
    for start in parent:
        path, node = [], start
        while node not in depth:
            path.append(node)
            node = parent[node]
        for above, walked in enumerate(reversed(path), start=depth[node] + 1):
            depth[walked] = above
    return dict(sorted(depth.items(), key=lambda item: (-item[1], item[0])))


def carried(cluster: Cluster, parent: Parents, head: int) -> dict[int, frozenset[ModuleKey]]:
    """Modules of each node's subtree, itself included; deepest node first."""
    order = depths(parent, head)
    below = {node: frozenset(cluster.holds[node]) for node in order}
    for node in order:
        if node != head:
            below[parent[node]] |= below[node]
    return below


@dataclass(frozen=True, slots=True)
class Candidate:
    """A head with its tree, and what relaying to it and uploading would cost.

    Attributes:
        head: Device.
        parent: Node -> next node towards the head.
        latency_s: Until the edge has everything [s].
        energy_j: Over all links of the tree and the head's uplink [J].
        battery_j: The head's residual energy [J].
    """

    head: int
    parent: Parents
    latency_s: float
    energy_j: float
    battery_j: float


def candidate(cluster: Cluster, parent: Parents, head: int, *, summing: bool) -> Candidate:
    """Price a tree with the bits that it carries.

    A link carries the union of the modules below it, or every model below it if not
    ``summing``. A device sends once it has heard all below it; a receiver takes one sender
    at a time, in the order in which they are ready.
    """
    union = carried(cluster, parent, head)
    models = {node: cluster.bits(cluster.holds[node]) for node in union}
    waiting: dict[int, list[tuple[float, int, float]]] = {node: [] for node in union}
    known: dict[frozenset[ModuleKey], int] = {}
    energy_j = ready_s = 0.0
    bits = 0
    for node, keys in union.items():
        if keys not in known:
            known[keys] = cluster.bits(keys)
        bits = known[keys] if summing else models[node]
        ready_s = 0.0
        for sender_s, _, takes_s in sorted(waiting[node]):
            ready_s = max(ready_s, sender_s) + takes_s
        if node == head:
            continue
        up = parent[node]
        models[up] += models[node]
        energy_j += bits * cluster.link_j[node, up]
        if keys:
            waiting[up].append((ready_s, node, bits * cluster.link_s[node, up]))
    return Candidate(
        head,
        parent,
        ready_s + bits * cluster.uplink_s[head],
        energy_j + bits * cluster.uplink_j[head],
        cluster.battery_j[head],
    )


def _fastest(candidates: Sequence[Candidate]) -> Candidate:
    return min(candidates, key=lambda c: (c.latency_s, c.head))


def _thriftiest(candidates: Sequence[Candidate]) -> Candidate:
    return min(candidates, key=lambda c: (c.energy_j, c.head))


def _freshest(candidates: Sequence[Candidate]) -> Candidate:
    most_j = max(c.battery_j for c in candidates)
    return _fastest([c for c in candidates if c.battery_j == most_j])


HEADS: Final[Mapping[str, Callable[[Sequence[Candidate]], Candidate]]] = {
    "latency": _fastest,
    "energy": _thriftiest,
    "battery": _freshest,
}
"""Who is the head: the one that is done first; that costs the least energy; or, of those with
the most energy left (so that the role rotates, after Heinzelman et al. 2000, LEACH), the first
to be done. Equal candidates: the lowest index."""


def relay_tree(
    cluster: Cluster, component: Sequence[int], *, head: str, summing: bool
) -> Candidate:
    """Best head of one connected component, with its tree.

    Trees are cheapest paths in time; for the head "energy", minimum spanning arborescences
    in energy. A device with an empty battery is head only where all batteries are empty.
    """
    inside = set(component)
    cost = cluster.link_j if head == "energy" else cluster.link_s
    links = {(a, b): cost[a, b] for a, b in sorted(cost) if a in inside and b in inside}
    back = {(b, a): value for (a, b), value in links.items()}

    def tree(root: int) -> Parents:
        if head == "energy":
            return arborescence(back, root, component)
        return shortest_routes(links, root, nodes=component, towards=True).parent

    able = [root for root in sorted(component) if cluster.battery_j[root] > 0]
    return HEADS[head](
        [
            candidate(cluster, tree(root), root, summing=summing)
            for root in able or sorted(component)
        ]
    )
