"""Paths and trees over the links between devices.

Costs are per directed link and may be seconds or joules; nodes are device indices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hffm_flower.errors import ConfigError

Link = tuple[int, int]
"""A directed link: who sends, who receives."""


@dataclass(frozen=True, slots=True)
class Routes:
    """Cheapest paths between every node and one root.

    Attributes:
        root: Where all paths end, or begin.
        cost: Node -> sum of the costs along its path, in the unit of the links' costs.
        parent: Node -> next node towards the root; the root has none.
    """

    root: int
    cost: Mapping[int, float]
    parent: Mapping[int, int]

    def slowest(self) -> float:
        """Largest cost of a path."""
        return max(self.cost.values())


def shortest_routes(
    cost: Mapping[Link, float], root: int, *, nodes: Iterable[int], towards: bool
) -> Routes:
    """Tree of cheapest paths from all ``nodes`` to ``root``, or from it if not ``towards``.

    Raises:
        ConfigError: The root is no node, a cost is negative, or a node has no path.

    Source: Dijkstra 1959, "A note on two problems in connexion with graphs", problem 2.
    """
    import networkx as nx

    wanted = sorted(set(nodes))
    if root not in wanted:
        raise ConfigError(f"head {root} is not in its cluster {wanted}")
    graph = nx.DiGraph()
    graph.add_nodes_from(wanted)
    for (a, b), value in cost.items():
        if not value >= 0:
            raise ConfigError(f"link {a}->{b} costs {value}; a cost is a number >= 0")
        graph.add_edge(*((b, a) if towards else (a, b)), weight=value)
    length, path = nx.single_source_dijkstra(graph, root)
    apart = [n for n in wanted if n not in length]
    if apart:
        raise ConfigError(f"no path of links between head {root} and devices {apart}")
    return Routes(
        root,
        {n: float(length[n]) for n in wanted},
        {n: path[n][-2] for n in wanted if n != root},
    )


def spanning_tree(cost: Mapping[Link, float]) -> tuple[Link, ...]:
    """Links of a minimum spanning tree (a forest where unconnected), each as (low, high).

    Where both directions have a cost, the lower one counts.

    Source: Kruskal 1956, "On the shortest spanning subtree of a graph".
    """
    import networkx as nx

    graph = nx.Graph()
    for (a, b), value in sorted(cost.items()):
        if not graph.has_edge(a, b) or value < graph[a][b]["weight"]:
            graph.add_edge(a, b, weight=value)
    tree = nx.minimum_spanning_edges(graph, algorithm="kruskal", data=False)
    return tuple(sorted((min(a, b), max(a, b)) for a, b in tree))


def fastest_head(cost_s: Mapping[Link, float], uplink_s: Mapping[int, float]) -> int:
    """Device whose slowest incoming path [s] plus own uplink [s] is shortest.

    Args:
        cost_s: Seconds of each directed link inside the cluster.
        uplink_s: Seconds of every cluster member's own uplink; its keys are the cluster.
    """

    def total_s(head: int) -> float:
        routes = shortest_routes(cost_s, head, nodes=uplink_s, towards=True)
        return routes.slowest() + uplink_s[head]

    return min(sorted(uplink_s), key=total_s)
