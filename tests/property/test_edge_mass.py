"""What an edge's modules weigh at the cloud, and that a tree of edges is one flat merge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
from strategies.edge import EdgeStrategy
from strategies.grids import EVALUATE_CLUSTER, TRAIN_CLUSTER, ClusterGrid, NestedGrid
from strategies.modular import Member
from tests.support.memory import (
    KEYS,
    A,
    H,
    MemoryGrid,
    P,
    cluster_message,
    module,
    numbered,
    same,
    scored,
    trained,
)

NODE = 100
"""Node id of device 0."""

START: ModularState = {A: module(1, -2, 3), H: module(0.5, 4), P: module(-1)}
SCORES = {"iid/easyvqa10": (1, 2, 1.0)}


def members(holdings: Mapping[int, Iterable[ModuleKey]]) -> dict[int, Member]:
    return {NODE + k: Member(k, tuple(sorted(keys))) for k, keys in holdings.items()}


def edge_of(
    schedule: Schedule,
    holdings: Mapping[int, Iterable[ModuleKey]],
    *,
    index: int = 0,
    quorum: float = 0.5,
) -> EdgeStrategy:
    return EdgeStrategy(
        index, members(holdings), schedule, seed=1, fraction=1.0, rule="mean",
        optimizer="*=mean",        quorum=quorum, deadline_s=5.0, report_every=1,
    )  # fmt: skip


def play(
    edge: EdgeStrategy, message: Message, device: Callable[[Message], Message]
) -> ModularUpdate:
    """Play a cloud message against devices that are a function."""
    steps = edge.cluster_round(message.metadata.message_type, message.content)
    try:
        asked = next(steps)
        while True:
            asked = steps.send([device(numbered(m)) for m in asked])
    except StopIteration as stop:
        return update_of(stop.value)


@dataclass
class Plan:
    """What every device does at every t, and what it was sent."""

    state: Callable[[int, int, ModuleKey, ModuleState], ModuleState]
    mass: Callable[[int, int, ModuleKey], float]
    sent: list[tuple[int, int, str, ModularState]] = field(default_factory=list)

    def __call__(self, message: Message) -> Message:
        device = message.metadata.dst_node_id - NODE
        t = number(message.content, CONFIG, "t")
        got = modules_of(message.content)
        self.sent.append((t, device, message.metadata.message_type, got))
        if message.metadata.message_type == "evaluate":
            return scored(message, SCORES)
        state = {k: self.state(device, t, k, s) for k, s in got.items()}
        return trained(message, state, {k: self.mass(device, t, k) for k in got})


def moved(device: int, t: int, key: ModuleKey, state: ModuleState) -> ModuleState:
    """Training, as far as averaging is concerned: another move for every (device, t, key)."""
    rng = np.random.default_rng([device, t, KEYS.index(key)])
    return {n: a + rng.normal(size=a.shape).astype(np.float32) for n, a in state.items()}


def cloud_schedule(period: int, rounds: int, policy: str = "") -> Schedule:
    return Schedule.of(KEYS, method="h-fedfm", policy=policy, period=period, rounds=rounds)


Masses = dict[tuple[int, int, ModuleKey], float]


@st.composite
def masses(draw: st.DrawFn, devices: int, rounds: int) -> Masses:
    sizes = st.one_of(st.just(0.0), st.integers(1, 99).map(float))
    return {
        (k, t, key): draw(sizes)
        for k in range(devices) for t in range(1, rounds + 1) for key in KEYS
    }  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(masses(3, 6), st.sampled_from([1, 2, 3, 6]))
def test_the_mass_counts_distinct_devices_since_the_last_exchange_with_their_latest_n(
    table: Masses, period: int
) -> None:
    schedule = cloud_schedule(period, 6)
    edge = edge_of(schedule, dict.fromkeys(range(3), KEYS))
    plan = Plan(moved, lambda k, t, key: table[k, t, key])
    down: ModularState = START
    for last in range(period, 7, period):
        first = last - period + 1
        update = play(edge, cluster_message(TRAIN_CLUSTER, first, last, down), plan)
        want: dict[ModuleKey, float] = {}
        for key in KEYS:
            latest = [
                next((table[k, t, key] for t in range(last, first - 1, -1) if table[k, t, key]), 0)
                for k in range(3)
            ]
            if any(latest):
                want[key] = float(sum(latest))
        assert update.mass == want
        assert all(same(update.state[k], edge.modules[k]) for k in want)
        down = {k: moved(9, last, k, s) for k, s in edge.modules.items()}


def test_a_module_trained_only_in_the_first_of_two_edge_rounds_still_counts() -> None:
    edge = edge_of(cloud_schedule(2, 4), {0: KEYS, 1: KEYS})
    seen = {(0, 1, H): 7.0, (1, 1, H): 5.0, (1, 2, H): 0.0, (0, 1, A): 3.0, (0, 2, A): 4.0}
    plan = Plan(moved, lambda k, t, key: seen.get((k, t, key), 0.0))
    update = play(edge, cluster_message(TRAIN_CLUSTER, 1, 2, START), plan)
    assert update.mass == {H: 12.0, A: 4.0}
    want = merge(
        ModularUpdate({H: moved(k, 1, H, START[H])}, {H: n}) for k, n in ((0, 7.0), (1, 5.0))
    )
    assert same(update.state[H], want.state[H])


def test_the_same_device_counts_once_with_its_latest_n() -> None:
    edge = edge_of(cloud_schedule(3, 3), {0: (A,), 1: (A,)})
    seen = {(0, 1): 10.0, (0, 2): 20.0, (0, 3): 5.0, (1, 1): 1.0}
    plan = Plan(moved, lambda k, t, key: seen.get((k, t), 0.0))
    assert play(edge, cluster_message(TRAIN_CLUSTER, 1, 3, START), plan).mass == {A: 6.0}


def test_what_the_cloud_sends_is_adopted_and_begins_a_new_count() -> None:
    edge = edge_of(cloud_schedule(1, 3), {0: KEYS})
    plan = Plan(moved, lambda k, t, key: 8.0 if t == 1 or key == A else 0.0)
    assert play(edge, cluster_message(TRAIN_CLUSTER, 1, 1, START), plan).mass == {
        A: 8.0, H: 8.0, P: 8.0
    }  # fmt: skip
    before = dict(edge.modules)
    fresh: ModularState = {A: module(7, 7, 7), H: module(8, 8)}
    update = play(edge, cluster_message(TRAIN_CLUSTER, 2, 2, fresh), plan)
    # The prompt was not sent down: its count goes on. The head was: it begins at nothing.
    assert update.mass == {A: 8.0, P: 8.0}
    assert same(edge.modules[H], fresh[H])
    assert same(edge.modules[P], before[P])
    assert same(edge.modules[A], moved(0, 2, A, fresh[A]))
    assert edge.versions == {A: 2, H: 1, P: 1}


def test_a_module_without_mass_stays_and_still_takes_the_clouds() -> None:
    edge = edge_of(cloud_schedule(1, 2), {0: KEYS, 1: (A,)})
    plan = Plan(moved, lambda k, t, key: 0.0 if key == H else 4.0)
    update = play(edge, cluster_message(TRAIN_CLUSTER, 1, 1, START), plan)
    assert H not in update.mass
    assert same(edge.modules[H], START[H])
    after: ModularState = {H: module(6, 6)}
    play(edge, cluster_message(EVALUATE_CLUSTER, 1, 1, after), plan)
    assert same(edge.modules[H], after[H])
    assert edge.versions[H] == 1, "it is the cloud's module of edge round 1"
    t, device, kind, got = plan.sent[-2]
    assert (t, device, kind) == (1, 0, "evaluate")
    assert same(got[H], after[H])


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


@settings(deadline=None, max_examples=20)
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


@settings(deadline=None, max_examples=10)
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
