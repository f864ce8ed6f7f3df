"""Laws of D2D plans on random clusters: what they cost, and that they do what they say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hffm_flower.d2d import (
    EDGE,
    PLANS,
    Cluster,
    PlanOptions,
    make_plan,
    plan_from_json,
    plan_to_json,
    relay_modules,
)
from hffm_flower.d2d.trees import arborescence
from hffm_flower.modules import ModuleKey
from hffm_flower.routes import Link

KEYS = tuple(ModuleKey.parse(text) for text in ("adapter/a", "encoder/b", "head/c"))
SIZES = dict(zip(KEYS, (100, 700, 40), strict=True))


@st.composite
def clusters(draw: st.DrawFn, most: int = 7, connected: bool = False) -> Cluster:
    """Random graphs and holdings; every cost is another one, so that nothing is tied."""
    count = draw(st.integers(1, most))
    devices = sorted(draw(st.sets(st.integers(0, 30), min_size=count, max_size=count)))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    pairs = {(devices[int(rng.integers(n))], devices[n]) for n in range(1, count)}
    pairs |= {p for p in itertools.combinations(devices, 2) if rng.random() < 0.3}
    if not connected:
        pairs = {p for p in pairs if rng.random() < 0.8}
    links = sorted([*pairs, *((b, a) for a, b in pairs)])

    def per_device() -> dict[int, float]:
        return {d: float(rng.uniform(0.1, 2.0)) for d in devices}

    def some(chance: float) -> dict[int, tuple[ModuleKey, ...]]:
        return {d: tuple(k for k in KEYS if rng.random() < chance) for d in devices}

    return Cluster(
        holds=some(0.7),
        sizes=SIZES,
        link_s={link: float(rng.uniform(0.01, 1.0)) for link in links},
        link_j={link: float(rng.uniform(0.01, 1.0)) for link in links},
        uplink_s=per_device(),
        uplink_j=per_device(),
        downlink_s=per_device(),
        downlink_j=per_device(),
        battery_j={d: float(rng.integers(1, 3)) for d in devices},
        has=some(0.2),
        seed=int(rng.integers(100)),
    )


OPTIONS = st.builds(
    PlanOptions,
    head=st.sampled_from(["latency", "energy", "battery"]),
    accuracy=st.sampled_from([1e-4, 1e-2, 0.5]),
)


@given(clusters(), OPTIONS, st.sampled_from(sorted(PLANS)))
def test_a_plan_fits_its_cluster_and_survives_json(
    cluster: Cluster, options: PlanOptions, kind: str
) -> None:
    plan = make_plan(kind, cluster, options)
    plan.check(cluster)
    text = plan_to_json(plan)
    assert plan_from_json(text) == plan
    assert plan_to_json(plan_from_json(text)) == text
    assert make_plan(kind, cluster, options) == plan
    for step in plan.steps:
        for i, out in step.sends.items():
            for j, shares in out.items():
                assert shares, (i, j)
    uploaded = sorted(key for keys in plan.uploads.values() for key in keys)
    if kind == "relay":
        expected = [
            key
            for part in cluster.components(cluster.devices)
            for key in {key for d in part for key in cluster.holds[d]}
        ]
    else:
        expected = [key for key, groups in plan.groups.items() for _ in groups]
    assert uploaded == sorted(expected)


@given(clusters(), OPTIONS, st.sampled_from(sorted(PLANS)))
def test_everyone_gets_what_it_needs_once(
    cluster: Cluster, options: PlanOptions, kind: str
) -> None:
    got: dict[int, list[ModuleKey]] = {d: [] for d in cluster.devices}
    for hop in make_plan(kind, cluster, options).down:
        got[hop.dst].extend(hop.keys)
    for device, keys in got.items():
        assert len(set(keys)) == len(keys)
        assert not set(keys) & set(cluster.has[device])
        assert cluster.needs(device) <= set(keys)
        if kind != "relay":
            assert cluster.needs(device) == set(keys)


def in_trees(
    nodes: tuple[int, ...], sources: Mapping[int, list[tuple[float, int]]], roots: set[int]
) -> Iterator[tuple[float, dict[int, int]]]:
    """Every way to give each node a source, without circles: total cost and sources."""
    for choice in itertools.product(*(sources[n] for n in nodes)):
        chosen = {n: source for n, (_, source) in zip(nodes, choice, strict=True)}
        if all(_ends(n, chosen, roots) for n in nodes):
            yield sum(cost for cost, _ in choice), chosen


def _ends(node: int, chosen: Mapping[int, int], roots: set[int]) -> bool:
    for _ in range(len(chosen) + 1):
        if node in roots:
            return True
        node = chosen[node]
    return False


@settings(max_examples=60)
@given(clusters(most=5))
def test_relaying_modules_is_cheapest(cluster: Cluster) -> None:
    hops = relay_modules(cluster)
    order = [(hop.step, hop.src, hop.dst) for hop in hops]
    assert order == sorted(set(order))
    for key in cluster.modules:
        takers = tuple(d for d in cluster.devices if key in cluster.needs(d))
        owners = {d for d in cluster.devices if key in cluster.has[d]}
        sources = {
            d: [(cluster.downlink_s[d], EDGE)]
            + [
                (s, a)
                for (a, b), s in cluster.link_s.items()
                if b == d and (a in takers or a in owners)
            ]
            for d in takers
        }
        best, chosen = min(in_trees(takers, sources, {EDGE} | owners), key=lambda x: x[0])
        found = {hop.dst: hop.src for hop in hops if key in hop.keys}
        assert found == chosen
        assert best == pytest.approx(
            sum(
                cluster.downlink_s[d] if s == EDGE else cluster.link_s[s, d]
                for d, s in found.items()
            )
        )


def next_hop(cluster: Cluster, start: int, head: int, part: tuple[int, ...]) -> int:
    """First hop of the cheapest of all simple paths."""
    others = [d for d in part if d not in (start, head)]
    paths = [
        (start, *middle, head)
        for size in range(len(others) + 1)
        for middle in itertools.permutations(others, size)
        if all(hop in cluster.link_s for hop in itertools.pairwise((start, *middle, head)))
    ]
    return min(paths, key=lambda p: sum(cluster.link_s[hop] for hop in itertools.pairwise(p)))[1]


def prices(
    cluster: Cluster, parent: Mapping[int, int], head: int, summing: bool
) -> tuple[float, float]:
    """Latency and energy of a tree, by recursion over subtrees."""

    def visit(node: int) -> tuple[float, float, list[ModuleKey]]:
        models = list(cluster.holds[node])
        arrivals, energy_j = [], 0.0
        for child in [n for n, up in parent.items() if up == node]:
            ready_s, below_j, load = visit(child)
            models += load
            bits = 8 * sum(SIZES[key] for key in load)
            energy_j += below_j + bits * cluster.link_j[child, node]
            if load:
                arrivals.append((ready_s, bits * cluster.link_s[child, node]))
        now_s = 0.0
        for ready_s, takes_s in sorted(arrivals):
            now_s = max(now_s, ready_s) + takes_s
        return now_s, energy_j, sorted(set(models)) if summing else models

    now_s, energy_j, load = visit(head)
    bits = 8 * sum(SIZES[key] for key in load)
    return now_s + bits * cluster.uplink_s[head], energy_j + bits * cluster.uplink_j[head]


@settings(max_examples=60)
@given(clusters(most=5, connected=True), OPTIONS, st.booleans())
def test_the_head_is_the_best_of_all(cluster: Cluster, options: PlanOptions, summing: bool) -> None:
    options = PlanOptions(head=options.head, summing=summing)
    part = cluster.devices
    found: dict[int, tuple[tuple[float, float], Mapping[int, int]]] = {}
    for head in part:
        rest = tuple(d for d in part if d != head)
        parent = {d: next_hop(cluster, d, head, part) for d in rest}
        if options.head == "energy":
            ways = {d: [(j, b) for (a, b), j in cluster.link_j.items() if a == d] for d in rest}
            parent = min(in_trees(rest, ways, {head}), key=lambda x: x[0])[1]
        found[head] = (prices(cluster, parent, head, summing), parent)
    allowed = list(part)
    if options.head == "battery":
        most_j = max(cluster.battery_j.values())
        allowed = [d for d in part if cluster.battery_j[d] == most_j]
    which = 1 if options.head == "energy" else 0
    best = min(allowed, key=lambda d: found[d][0][which])
    plan = make_plan("relay", cluster, options)
    assert plan.uploads == ({best: cluster.modules} if cluster.modules else {})
    for step in plan.steps:
        for i, out in step.sends.items():
            assert list(out) == [found[best][1][i]]


@given(st.integers(2, 9), st.integers(0, 2**31), st.booleans())
def test_arborescence_costs_what_networkx_finds(n: int, seed: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    cost: dict[Link, float] = {}
    for a, b in itertools.permutations(range(n), 2):
        if a == 0 or rng.random() < 0.6:
            cost[a, b] = float(rng.integers(0, 4)) if tied else float(rng.uniform(0, 4))
    parent = arborescence(cost, 0, range(n))
    graph = nx.DiGraph()
    graph.add_weighted_edges_from((a, b, s) for (a, b), s in cost.items() if b != 0)
    expected = nx.minimum_spanning_arborescence(graph).size(weight="weight")
    assert sorted(parent) == list(range(1, n))
    assert all(_ends(d, parent, {0}) for d in parent)
    assert math.isclose(
        sum(cost[a, b] for b, a in parent.items()), expected, rel_tol=1e-9, abs_tol=1e-12
    )
