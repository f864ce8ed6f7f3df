from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hffm_flower.errors import ConfigError
from hffm_flower.routes import Link, fastest_head, shortest_routes, spanning_tree

COST = {(0, 1): 1.0, (1, 0): 5.0, (1, 2): 1.0, (2, 1): 1.0, (0, 2): 3.0, (2, 0): 0.5}


def test_directions_differ() -> None:
    to = shortest_routes(COST, 2, nodes=range(3), towards=True)
    assert to.cost == {0: 2.0, 1: 1.0, 2: 0.0}
    assert to.parent == {0: 1, 1: 2}
    assert to.slowest() == 2.0
    away = shortest_routes(COST, 2, nodes=range(3), towards=False)
    assert away.cost == {0: 0.5, 1: 1.0, 2: 0.0}
    assert away.parent == {0: 2, 1: 2}


def test_a_node_alone() -> None:
    alone = shortest_routes({}, 7, nodes=[7], towards=True)
    assert (alone.cost, alone.parent, alone.slowest()) == ({7: 0.0}, {}, 0.0)
    assert spanning_tree({}) == ()
    assert fastest_head({}, {7: 3.0}) == 7


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match=r"head 5 is not in its cluster \[0, 1, 2\]"):
        shortest_routes(COST, 5, nodes=range(3), towards=True)
    with pytest.raises(ConfigError, match=r"no path .* head 0 and devices \[3\]"):
        shortest_routes(COST, 0, nodes=range(4), towards=True)
    for bad in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match="0->1 costs"):
            shortest_routes({(0, 1): bad}, 0, nodes=[0, 1], towards=True)


def test_the_tree_takes_the_lower_direction() -> None:
    assert spanning_tree(COST) == ((0, 2), (1, 2)) or spanning_tree(COST) == ((0, 1), (0, 2))
    assert spanning_tree({(0, 1): 9.0, (1, 0): 1.0, (1, 2): 2.0, (0, 2): 3.0}) == ((0, 1), (1, 2))


def test_the_head_counts_its_own_uplink() -> None:
    sides = {(0, 1): 1.0, (1, 0): 1.0, (1, 2): 1.0, (2, 1): 1.0}
    assert fastest_head(sides, {0: 5.0, 1: 5.0, 2: 5.0}) == 1
    assert fastest_head(sides, {0: 3.0, 1: 5.0, 2: 5.0}) == 0


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, dict[Link, float]]:
    """Complete directed graphs of small whole costs."""
    n = draw(st.integers(1, 5))
    pairs = list(itertools.permutations(range(n), 2))
    return n, {p: float(draw(st.integers(1, 9))) for p in pairs}


def _least(cost: dict[Link, float], n: int, start: int, end: int) -> float:
    others = [i for i in range(n) if i not in (start, end)]
    paths = (
        [start, *middle, end] for k in range(len(others) + 1)
        for middle in itertools.permutations(others, k)
    )  # fmt: skip
    return min(sum(cost[p] for p in itertools.pairwise(path)) for path in paths)


@given(graphs())
def test_paths_are_the_shortest_of_all(graph: tuple[int, dict[Link, float]]) -> None:
    n, cost = graph
    to = shortest_routes(cost, 0, nodes=range(n), towards=True)
    away = shortest_routes(cost, 0, nodes=range(n), towards=False)
    for node in range(1, n):
        assert to.cost[node] == _least(cost, n, node, 0)
        assert away.cost[node] == _least(cost, n, 0, node)
        assert to.cost[node] == to.cost[to.parent[node]] + cost[node, to.parent[node]]


@given(graphs())
def test_the_spanning_tree_is_the_cheapest_of_all(graph: tuple[int, dict[Link, float]]) -> None:
    n, cost = graph
    lower = {(a, b): min(cost[a, b], cost[b, a]) for a, b in cost if a < b}

    def spans(links: tuple[Link, ...]) -> bool:
        reached = {0}
        for _ in range(n):
            reached |= {x for link in links if reached & set(link) for x in link}
        return len(reached) == n

    trees = [t for t in itertools.combinations(lower, n - 1) if spans(t)]
    found = spanning_tree(cost)
    assert spans(found)
    assert len(found) == n - 1
    assert sum(lower[x] for x in found) == min(sum(lower[x] for x in t) for t in trees)
