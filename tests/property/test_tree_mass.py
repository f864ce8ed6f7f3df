"""Laws of a whole tree: one aggregation of it is the flat merge of its devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from flwr.app import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from hffm_flower.modules import ModularState, ModularUpdate, ModuleKey, ModuleState, merge
from hffm_flower.records import (
    CONFIG,
    modules_of,
    modules_record,
    number,
    update_of,
)
from hffm_flower.report import RoundReport
from hffm_flower.schedule import Schedule, Scope
from strategies.cloud import CloudStrategy
from strategies.grids import EVALUATE_CLUSTER, TRAIN_CLUSTER, ClusterGrid, NestedGrid
from strategies.modular import Member
from tests.support.edges import (
    NODE,
    START,
    Masses,
    Plan,
    cloud_schedule,
    edge_of,
    masses,
    moved,
)
from tests.support.memory import (
    KEYS,
    A,
    H,
    MemoryGrid,
    P,
    module,
    same,
)


@dataclass
class Tree:
    """A whole federation in memory."""

    schedule: Schedule
    plan: Plan
    holdings: Mapping[int, tuple[ModuleKey, ...]]
    clusters: tuple[tuple[int, ...], ...]
    reports: list[RoundReport] = field(default_factory=list)
    clouds: list[ModularState] = field(default_factory=list)
    up: list[tuple[int, int, ModularUpdate]] = field(default_factory=list)
    down: list[tuple[int, str, int, set[ModuleKey]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        tree = self
        self.edges = {
            1 + e: edge_of(self.schedule, {k: self.holdings[k] for k in cluster}, index=e)
            for e, cluster in enumerate(self.clusters)
        }
        self.cloud = CloudStrategy(
            {
                n: Member(e.index, tuple(sorted({k for m in e.members.values() for k in m.keys})))
                for n, e in self.edges.items()
            },
            self.schedule,
            START,
            rule="mean", optimizer="*=mean", quorum=1.0, deadline_s=5.0, report_every=1,
            on_round=self._row,
        )  # fmt: skip
        grid = MemoryGrid({NODE + k: self.plan for k in self.holdings})

        class Spy(NestedGrid):
            def send_and_receive(
                self, messages: Iterable[Message], *, timeout: float | None = None
            ) -> Iterable[Message]:
                asked = list(messages)
                replies = list(super().send_and_receive(asked, timeout=timeout))
                for m, r in zip(asked, replies, strict=True):
                    t, node = number(m.content, CONFIG, "last"), m.metadata.dst_node_id
                    keys = set(modules_of(m.content))
                    tree.down.append((t, m.metadata.message_type, node, keys))
                    if m.metadata.message_type == TRAIN_CLUSTER:
                        tree.up.append((t, node, update_of(r.content)))
                return replies

        self.cloud.start(
            Spy(ClusterGrid(grid, list(grid.devices)), self.edges),
            modules_record(START),
            num_rounds=len(self.cloud.exchanges),
            timeout=5.0,
        )

    def _row(self, report: RoundReport, modules: ModularState) -> None:
        self.reports.append(report)
        self.clouds.append(dict(modules))


@st.composite
def trees(
    draw: st.DrawFn,
) -> tuple[dict[int, tuple[ModuleKey, ...]], tuple[tuple[int, ...], ...]]:
    devices = draw(st.integers(2, 7))
    holdings = {
        k: tuple(sorted(draw(st.sets(st.sampled_from(KEYS), min_size=1)))) for k in range(devices)
    }
    edges = draw(st.integers(1, min(4, devices)))
    of = [*range(edges), *(draw(st.integers(0, edges - 1)) for _ in range(devices - edges))]
    return holdings, tuple(tuple(k for k in range(devices) if of[k] == e) for e in range(edges))


@settings(max_examples=20)
@given(trees(), masses(7, 1))
def test_one_aggregation_over_a_tree_is_the_flat_merge_of_its_devices(
    shape: tuple[dict[int, tuple[ModuleKey, ...]], tuple[tuple[int, ...], ...]], table: Masses
) -> None:
    holdings, clusters = shape
    plan = Plan(moved, lambda k, t, key: table[k, t, key])
    tree = Tree(cloud_schedule(1, 1), plan, holdings, clusters)
    flat = merge(
        ModularUpdate(
            {key: moved(k, 1, key, START[key]) for key in holdings[k]},
            {key: table[k, 1, key] for key in holdings[k]},
        )
        for k in holdings
    )
    bound = 1e-6 * max(
        float(np.abs(a).max())
        for k in holdings for key in holdings[k]
        for a in moved(k, 1, key, START[key]).values()
    )  # fmt: skip
    for key in KEYS:
        want = flat.state.get(key, START[key])
        for name, array in tree.cloud.modules[key].items():
            assert np.abs(array - want[name]).max() <= bound, key
        assert tree.cloud.versions[key] == (1 if key in flat.mass else 0)
    for edge in tree.edges.values():
        for key in {k for m in edge.members.values() for k in m.keys} & flat.state.keys():
            assert same(edge.modules[key], tree.cloud.modules[key])


@settings(max_examples=10)
@given(trees(), masses(7, 1))
def test_star_is_h_fedfm_with_period_one(
    shape: tuple[dict[int, tuple[ModuleKey, ...]], tuple[tuple[int, ...], ...]], table: Masses
) -> None:
    holdings, clusters = shape
    mass = lambda k, t, key: table[k, t, key]  # noqa: E731
    star = Schedule.of(KEYS, method="star", policy="", period=8, rounds=1)
    one = Tree(star, Plan(moved, mass), holdings, (tuple(sorted(holdings)),))
    other = Tree(cloud_schedule(1, 1), Plan(moved, mass), holdings, clusters)
    assert one.cloud.versions == other.cloud.versions
    for key in KEYS:
        scale = 10.0  # no |theta| is above START's 4 plus six sigma
        for name, array in one.cloud.modules[key].items():
            assert np.abs(array - other.cloud.modules[key][name]).max() <= 1e-6 * scale


def test_each_module_travels_at_its_own_period_and_is_averaged_where_it_belongs() -> None:
    device_head, edge_prompt = ModuleKey.parse("head/own"), P
    start: ModularState = {**START, device_head: module(5)}
    schedule = Schedule.of(
        start,
        method="local",
        policy="head/own=device head/*=cloud:1 adapter/*=cloud:3 prompt/*=edge",
        period=1,
        rounds=5,
    )
    assert schedule.scoped(Scope.DEVICE) == (device_head,)
    keys = tuple(sorted(start))
    local = (A, H, P)

    def move(device: int, t: int, key: ModuleKey, state: ModuleState) -> ModuleState:
        return {n: a + np.float32(2 * device + t) for n, a in state.items()}

    plan = Plan(move, lambda k, t, key: float(1 + k))
    tree = Tree(schedule, plan, dict.fromkeys(range(4), keys), ((0, 1), (2, 3)))

    # The same in plain words and float64: two edges of two devices each.
    n = {k: 1.0 + k for k in range(4)}
    state = {
        e: {k: next(iter(START[k].values())).astype(np.float64) for k in local} for e in (0, 1)
    }
    for t in range(1, 6):
        for e, cluster in ((0, (0, 1)), (1, (2, 3))):
            total = sum(n[k] for k in cluster)
            shift = sum(n[k] * (2 * k + t) for k in cluster) / total
            for key in local:
                state[e][key] = state[e][key] + shift
        due = {H} | ({A} if t in (3, 5) else set())
        held = {1 + e: state[e] for e in (0, 1)}
        sent = {node: update for at, node, update in tree.up if at == t}
        for node, update in sent.items():
            assert set(update.state) == due, f"up at t={t}"
            assert update.mass == dict.fromkeys(due, 3.0 if node == 1 else 7.0)
            for key in due:
                np.testing.assert_allclose(update.state[key]["w"], held[node][key], rtol=1e-6)
        for key in due:
            mean = (3 * state[0][key] + 7 * state[1][key]) / 10
            state[0][key] = state[1][key] = mean
            np.testing.assert_allclose(tree.clouds[t - 1][key]["w"], mean, rtol=1e-6)
        down = {(node, kind): got for at, kind, node, got in tree.down if at == t}
        for node in (1, 2):
            assert down[node, EVALUATE_CLUSTER] == due, "only what the cloud has just averaged"
            first = set(local) if t == 1 else set()
            assert down[node, TRAIN_CLUSTER] == first, "an edge is sent nothing that it has"
    for e, edge in enumerate(tree.edges.values()):
        for key in local:
            np.testing.assert_allclose(edge.modules[key]["w"], state[e][key], rtol=1e-6)
    assert not np.allclose(state[0][edge_prompt], state[1][edge_prompt])
    assert all(P not in c for c in tree.clouds), "the cloud never averages a prompt"
    assert all(set(got) == set(local) for _, _, _, got in plan.sent), "head/own never travels"
    assert [r.t for r in tree.reports] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("method", ["local", "edge-only"])
def test_a_method_without_a_cloud_keeps_edges_apart(method: str) -> None:
    schedule = Schedule.of(KEYS, method=method, policy="", period=1, rounds=2)
    plan = Plan(moved, lambda k, t, key: 1.0)
    tree = Tree(schedule, plan, {0: KEYS, 1: KEYS}, ((0,), (1,)))
    assert all(not u.state for _, _, u in tree.up)
    assert all(same(tree.cloud.modules[k], START[k]) for k in KEYS)
    tier = {"local": "device", "edge-only": "edge"}[method]
    assert [set(r.scores) for r in tree.reports] == [{tier}, {tier}]
    trains = [got for _, _, kind, got in plan.sent if kind == "train"]
    assert all(set(got) == (set() if method == "local" else set(KEYS)) for got in trains)
