"""The tree, and where it stands: which devices belong to which edge, and who hears whom."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hffm_flower.errors import ConfigError, one_of
from hffm_flower.routes import Link, spanning_tree

Metres = NDArray[np.float64]
Clusters = tuple[tuple[int, ...], ...]


def clusters(devices: int, edges: int) -> Clusters:
    """Device indices of each edge: consecutive, sizes differing by one at most.

    Every device is in exactly one cluster; needs ``1 <= edges <= devices``.
    """
    bounds = [e * devices // edges for e in range(edges + 1)]
    return tuple(tuple(range(a, b)) for a, b in itertools.pairwise(bounds))


@dataclass(frozen=True, slots=True, eq=False)
class Topology:
    """Where devices and edges stand, who belongs to whom, and which devices hear each other.

    Attributes:
        positions_m: Devices ``[N, 2]`` [m].
        edge_positions_m: Edge servers ``[E, 2]`` [m].
        clusters: Device indices of each edge; every device in exactly one. A cluster may be
            empty where devices chose their edge by channel.
        links: D2D links inside clusters, each once as (low, high) and good for both ways.

    Raises:
        ConfigError: The parts do not fit together.
    """

    positions_m: Metres
    edge_positions_m: Metres
    clusters: Clusters
    links: tuple[Link, ...] = ()

    def __post_init__(self) -> None:
        for what, array in (("device", self.positions_m), ("edge", self.edge_positions_m)):
            check_positions(what, array)
        check_clusters(self.clusters, devices=len(self.positions_m), edges=self.edges)
        edge_of = self.edge_of()
        seen = set()
        for a, b in self.links:
            if not (0 <= a < self.devices and 0 <= b < self.devices):
                raise ConfigError(
                    f"link {a}-{b} names an unknown device; devices are 0..{self.devices - 1}"
                )
            if a >= b or (a, b) in seen:
                raise ConfigError(f"link {a}-{b} is not given once, as low-high")
            if edge_of[a] != edge_of[b]:
                raise ConfigError(
                    f"link {a}-{b} joins cluster {edge_of[a]} and cluster {edge_of[b]}; "
                    "devices talk inside their cluster"
                )
            seen.add((a, b))

    @property
    def devices(self) -> int:
        """Number of devices."""
        return len(self.positions_m)

    @property
    def edges(self) -> int:
        """Number of edge servers."""
        return len(self.edge_positions_m)

    def edge_of(self) -> NDArray[np.int64]:
        """Index of each device's edge ``[N]``."""
        found = np.empty(self.devices, dtype=np.int64)
        for edge, members in enumerate(self.clusters):
            found[list(members)] = edge
        return found

    def uplink_m(self) -> Metres:
        """Distance of each device from its own edge ``[N]`` [m]."""
        return np.asarray(
            np.linalg.norm(self.positions_m - self.edge_positions_m[self.edge_of()], axis=1)
        )

    def directed(self) -> tuple[Link, ...]:
        """The links in both directions, (sender, receiver), sorted."""
        return _both_ways(self.links)

    def among(self, members: Iterable[int]) -> tuple[Link, ...]:
        """The links among some devices in both directions, as `directed`.

        Those that only the others join are joined by the shortest pairs: an idle device relays
        nothing.
        """
        import networkx as nx

        inside = set(members)
        kept = nx.Graph([link for link in self.links if inside.issuperset(link)])
        kept.add_nodes_from(inside)
        for joined in nx.connected_components(nx.Graph(self.links)):
            here = sorted(joined & inside)
            if not here or nx.is_connected(kept.subgraph(here)):
                continue
            apart_m = distances_m(self.positions_m[here], self.positions_m[here])
            cost = {
                (a, b): 0.0 if kept.has_edge(a, b) else float(apart_m[here.index(a), here.index(b)])
                for a, b in itertools.combinations(here, 2)
            }
            kept.add_edges_from(spanning_tree(cost))
        return _both_ways((min(link), max(link)) for link in kept.edges)

    def audible(self) -> tuple[Link, ...]:
        """Pairs, sender and receiver, that have a link or can come to have one (`among`)."""
        groups = self.clusters if self.links else ()
        return tuple(sorted(pair for g in groups for pair in itertools.permutations(g, 2)))


def _both_ways(links: Iterable[Link]) -> tuple[Link, ...]:
    return tuple(sorted(pair for a, b in links for pair in ((a, b), (b, a))))


def distances_m(a_m: Metres, b_m: Metres) -> Metres:
    """Distance of every point of ``[A, 2]`` from every point of ``[B, 2]``: ``[A, B]`` [m]."""
    return np.asarray(np.linalg.norm(a_m[:, None] - b_m[None], axis=-1))


def check_positions(what: str, positions_m: Metres) -> None:
    """Refuse positions that are not finite pairs.

    Raises:
        ConfigError: They are not.
    """
    if positions_m.ndim != 2 or positions_m.shape[1] != 2 or not len(positions_m):
        raise ConfigError(
            f"{what} positions have the shape {list(positions_m.shape)}; expected [N, 2], N >= 1"
        )
    for index, point in enumerate(positions_m):
        if not np.isfinite(point).all():
            raise ConfigError(f"{what} {index} stands at {point.tolist()}; both must be finite")


def check_clusters(groups: Clusters, *, devices: int, edges: int) -> None:
    """Refuse clusters that do not part the devices.

    Raises:
        ConfigError: They do not: a device is missing, unknown or in two clusters.
    """
    if len(groups) != edges:
        raise ConfigError(f"{len(groups)} clusters for {edges} edges; every edge has one")
    members = sorted(itertools.chain(*groups))
    if members != list(range(devices)):
        odd = sorted({m for m in members if members.count(m) > 1 or not 0 <= m < devices})
        missing = sorted(set(range(devices)) - set(members))
        raise ConfigError(
            f"clusters do not hold each of the devices 0..{devices - 1} once: "
            f"unknown or repeated {odd}, missing {missing}"
        )


def _radius(apart_m: Metres, reach: float) -> NDArray[np.bool_]:
    return np.asarray(apart_m <= reach)


def _nearest(apart_m: Metres, reach: float) -> NDArray[np.bool_]:
    k = min(int(reach), len(apart_m) - 1)
    near = np.zeros(apart_m.shape, dtype=np.bool_)
    order = np.argsort(apart_m + np.diag(np.full(len(apart_m), np.inf)), axis=1, kind="stable")
    np.put_along_axis(near, order[:, :k], values=True, axis=1)
    return near | near.T


def _tree(apart_m: Metres, reach: float) -> NDArray[np.bool_]:
    return np.zeros(apart_m.shape, dtype=np.bool_)


LinkRule = Callable[[Metres, float], NDArray[np.bool_]]
"""Distances ``[n, n]`` [m] in a cluster and a reach -> who hears whom ``[n, n]``, symmetric."""

LINKS: Final[Mapping[str, LinkRule]] = {
    "radius": _radius,
    "nearest": _nearest,
    "tree": _tree,
}
"""What makes a link: a distance up to ``reach`` [m]; being among the ``reach`` nearest of one
of the two [devices]; or nothing but the spanning tree."""
REACH: Final[Mapping[str, float]] = {"radius": 30.0, "nearest": 2.0}
"""Reach of a rule where none is given."""


def link_devices(
    positions_m: Metres, groups: Clusters, *, rule: str = "radius", reach: float | None = None
) -> tuple[Link, ...]:
    """D2D links of every cluster: those of ``rule``, plus the shortest spanning tree.

    The tree keeps every cluster connected, whatever the rule leaves out.

    Raises:
        ConfigError: Unknown rule, or a reach that is not a number >= 0 (nearest: whole).
    """
    chosen = LINKS[one_of("link rule", rule, LINKS)]
    reach = REACH.get(rule, 0.0) if reach is None else reach
    if not 0 <= reach < np.inf:
        raise ConfigError(f"reach {reach} of the links is not allowed; a finite number >= 0")
    if rule == "nearest" and reach != int(reach):
        raise ConfigError(f"reach {reach} of rule 'nearest' is not a whole number of devices")
    links: set[Link] = set()
    for members in groups:
        nodes = sorted(members)
        apart_m = distances_m(positions_m[nodes], positions_m[nodes])
        heard = chosen(apart_m, reach)
        pairs = list(itertools.combinations(range(len(nodes)), 2))
        links |= {(nodes[a], nodes[b]) for a, b in pairs if heard[a, b]}
        links |= set(spanning_tree({(nodes[a], nodes[b]): float(apart_m[a, b]) for a, b in pairs}))
    return tuple(sorted(links))


def _by_cluster(groups: Clusters, gain_NE: NDArray[np.float64]) -> Clusters:
    return groups


def _by_channel(groups: Clusters, gain_NE: NDArray[np.float64]) -> Clusters:
    best = np.argmax(gain_NE, axis=1)
    return tuple(tuple(np.flatnonzero(best == e).tolist()) for e in range(gain_NE.shape[1]))


ASSOCIATIONS: Final[Mapping[str, Callable[[Clusters, NDArray[np.float64]], Clusters]]] = {
    "cluster": _by_cluster,
    "best-channel": _by_channel,
}
"""Which edge a device belongs to: that of its cluster, or that of its largest path gain.
Each takes the clusters and the gains ``[N, E]`` and returns clusters."""
