"""What an edge's modules weigh at the cloud, and that a tree of edges is one flat merge."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hffm_flower.modules import ModularState, ModularUpdate, ModuleKey, merge
from strategies.grids import EVALUATE_CLUSTER, TRAIN_CLUSTER
from tests.support.edges import (
    START,
    Masses,
    Plan,
    cloud_schedule,
    edge_of,
    masses,
    moved,
    play,
)
from tests.support.memory import (
    KEYS,
    A,
    H,
    P,
    cluster_message,
    module,
    same,
)


@settings(max_examples=40)
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
