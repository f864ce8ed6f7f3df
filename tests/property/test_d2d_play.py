"""Laws of playing D2D plans: means are right, mass is kept, everyone counts once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hffm_flower.d2d import (
    PLANS,
    Cluster,
    Fault,
    Parcel,
    Plan,
    PlanOptions,
    Settled,
    incoming,
    make_plan,
    outgoing,
    play,
    settle,
    uploads_of,
)
from hffm_flower.modules import ModularUpdate, ModuleKey, merge
from hffm_flower.routes import Link

KEYS = tuple(ModuleKey.parse(text) for text in ("adapter/a", "encoder/b", "head/c"))
BYTES = dict(zip(KEYS, (4, 12, 40), strict=True))
HEADS = st.sampled_from(["latency", "energy", "battery"])
KINDS = st.sampled_from(sorted(PLANS))


def fleet_of(
    holds: Mapping[int, tuple[ModuleKey, ...]], pairs: Sequence[Link], seed: int
) -> Cluster:
    rng = np.random.default_rng(seed)
    cost = {link: float(rng.uniform(0.1, 1)) for a, b in pairs for link in ((a, b), (b, a))}
    each = {d: float(rng.uniform(0.1, 1)) for d in holds}
    return Cluster(holds, BYTES, cost, cost, each, each, each, each, each, seed=seed)


@st.composite
def clusters(draw: st.DrawFn, most: int = 7, chain: bool = False) -> Cluster:
    """A random connected graph or, now and then, one in pieces."""
    n = draw(st.integers(1, most))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    pairs = {(d - 1 if chain else int(rng.integers(d)), d) for d in range(1, n)}
    if not chain:
        pairs |= {p for p in itertools.combinations(range(n), 2) if rng.random() < 0.3}
        if draw(st.integers(0, 3)) == 0:
            pairs = {p for p in pairs if rng.random() < 0.7}
    holds = {d: tuple(k for k in KEYS if rng.random() < 0.75) for d in range(n)}
    return fleet_of(holds, sorted(pairs), seed)


MASSES = st.sampled_from(["equal", "small", "uneven", "some none"])


def train(cluster: Cluster, masses: str) -> dict[int, ModularUpdate]:
    """What each device would send; tensors of the sizes in `BYTES`."""
    rng = np.random.default_rng(cluster.seed + 1)
    updates = {}
    for d in cluster.devices:
        mass = {}
        for key in cluster.holds[d]:
            small = float(rng.integers(1, 6))
            mass[key] = {
                "equal": 3.0,
                "small": small,
                "uneven": float(np.exp(rng.uniform(0, 12))),
                "some none": small * float(rng.random() < 0.6),
            }[masses]
        state = {key: {"w": rng.normal(size=BYTES[key] // 4).astype(np.float32)} for key in mass}
        updates[d] = ModularUpdate(state, mass)
    return updates


def own_of(updates: Mapping[int, ModularUpdate]) -> dict[int, Mapping[ModuleKey, float]]:
    return {d: update.mass for d, update in updates.items()}


def spread(rows: Any) -> float:
    return float(np.linalg.norm(rows - np.mean(rows, axis=0)))


ALL = dict.fromkeys(range(5), KEYS)


@settings(max_examples=80)
@given(clusters(), st.sampled_from([1e-4, 1e-2, 0.3]), MASSES)
@example(fleet_of(ALL, list(itertools.combinations(range(5), 2)), 1), 1e-4, "uneven")
@example(fleet_of({3: KEYS}, [], 1), 1e-4, "equal")
@example(fleet_of({3: ()}, [], 1), 1e-4, "equal")
def test_gossip_comes_as_near_as_asked(cluster: Cluster, accuracy: float, masses: str) -> None:
    updates = train(cluster, masses)
    plan = make_plan("gossip", cluster, PlanOptions(accuracy=accuracy))
    played = play(updates, plan)
    for key, groups in plan.groups.items():
        assert sorted(d for g in groups for d in g) == list(cluster.holders(key))
        for group in groups:
            before_n = np.array([[updates[d].mass[key]] for d in group])
            before = before_n * np.stack([updates[d].state[key]["w"] for d in group])
            after_n, after = np.zeros_like(before_n), np.zeros_like(before)
            for row, d in enumerate(group):
                for parcel in played.held[d]:
                    if key in parcel.update.state:
                        after_n[row] = parcel.update.mass[key]
                        after[row] = after_n[row] * parcel.update.state[key]["w"]
            assert after_n.sum() == pytest.approx(before_n.sum(), rel=1e-12)
            for x, now, rounding in ((before_n, after_n, 1e-12), (before, after, 3e-6)):
                left = np.linalg.norm(now - np.mean(x, axis=0))
                assert left <= accuracy * spread(x) + rounding * np.abs(x).max()


def test_complete_graphs_take_one_round_and_single_devices_none() -> None:
    full = fleet_of(ALL, list(itertools.combinations(range(5), 2)), 0)
    assert len(make_plan("gossip", full, PlanOptions(accuracy=1e-9)).steps) == 1
    alone = fleet_of({2: KEYS}, [], 0)
    assert make_plan("gossip", alone, PlanOptions()).steps == ()
    pair = fleet_of(dict.fromkeys(range(3), KEYS), [(0, 1), (1, 2)], 0)
    # Weights 1/3 on both links: eigenvalues 1, 2/3 and 0.
    assert len(make_plan("gossip", pair, PlanOptions(accuracy=0.7)).steps) == 1
    assert len(make_plan("gossip", pair, PlanOptions(accuracy=0.6)).steps) == 2
    assert len(make_plan("gossip", pair, PlanOptions(accuracy=1e-3)).steps) == 18


def near(found: ModularUpdate, exact: ModularUpdate, scale: Mapping[ModuleKey, float]) -> None:
    assert found.state.keys() == exact.state.keys()
    for key in exact.state:
        assert found.mass[key] == pytest.approx(exact.mass[key], rel=1e-12)
        gap = np.abs(found.state[key]["w"] - exact.state[key]["w"]).max()
        assert gap <= 1e-6 * scale[key]


@given(st.one_of(clusters(), clusters(most=10, chain=True)), HEADS, st.booleans(), MASSES)
def test_relaying_is_one_flat_merge(
    cluster: Cluster, head: str, summing: bool, masses: str
) -> None:
    updates = train(cluster, masses)
    plan = make_plan("relay", cluster, PlanOptions(head=head, summing=summing))
    played = play(updates, plan)
    own = own_of(updates)
    settled = settle(plan, uploads_of(played, plan), own)
    assert not settled.missing
    for d, parcels in played.held.items():
        assert d in plan.uploads or parcels == ()
    flat = merge(updates.values())
    scale = {
        key: max(float(np.abs(u.state[key]["w"]).max()) for u in updates.values() if key in u.state)
        for key in flat.state
    }
    near(merge(p.update for p in settled.accepted), flat, scale)
    if summing:
        assert all(len(parcels) <= 1 for parcels in played.held.values())
    else:
        trained = sum(any(mass > 0 for mass in u.mass.values()) for u in updates.values())
        assert len(settled.accepted) == trained


def size(update: ModularUpdate) -> int:
    return sum(array.nbytes for module in update.state.values() for array in module.values())


@given(clusters(), HEADS, st.booleans())
def test_bytes_on_the_air(cluster: Cluster, head: str, summing: bool) -> None:
    plan = make_plan("relay", cluster, PlanOptions(head=head, summing=summing))
    parent = {i: j for step in plan.steps for i, out in step.sends.items() for j in out}
    played = play(train(cluster, "equal"), plan)
    found = sum(size(p.update) for sent in played.sent for p in sent.parcels)
    union: dict[int, set[ModuleKey]] = {}
    paths = 0
    for d in cluster.devices:
        node = d
        while node in parent:
            union.setdefault(node, set()).update(cluster.holds[d])
            paths += sum(BYTES[key] for key in cluster.holds[d])
            node = parent[node]
    assert found == (sum(BYTES[k] for keys in union.values() for k in keys) if summing else paths)


def counts(
    settled: Settled, updates: Mapping[int, ModularUpdate], dead: frozenset[int]
) -> dict[tuple[int, ModuleKey], float]:
    """Mass with which each device counts after the direct uploads that the edge asks for."""
    assert not dead & settled.missing.keys()
    direct = [Parcel.of(updates[d].only(keys), d) for d, keys in settled.missing.items()]
    total: dict[tuple[int, ModuleKey], float] = {}
    for parcel in [*settled.accepted, *direct]:
        for key, behind in parcel.behind.items():
            assert parcel.update.mass[key] == pytest.approx(sum(behind.values()), rel=1e-12)
            for d, mass in behind.items():
                total[d, key] = total.get((d, key), 0.0) + mass
    return total


def check_promise(
    updates: Mapping[int, ModularUpdate], plan: Plan, faults: Mapping[int, Fault]
) -> None:
    played = play(updates, plan, faults=faults)
    own = {d: updates[d].mass for d in played.held}
    settled = settle(plan, uploads_of(played, plan), own)
    total = counts(settled, updates, played.dead)
    for d, update in updates.items():
        for key, mass in update.mass.items():
            found = total.get((d, key), 0.0)
            assert found == mass or (d in played.dead and found == 0.0), (d, key, faults)
    # What is accepted is the mean of those that are said to be in it.
    for parcel in settled.accepted:
        for key, module in parcel.update.state.items():
            parts = [updates[d].only([key]) for d in sorted(parcel.behind[key])]
            gap = np.abs(module["w"] - merge(parts).state[key]["w"]).max()
            assert gap <= (1e-5 if plan.kind == "relay" else 5e-3), (key, faults)


@settings(max_examples=20)
@given(clusters(most=5), KINDS, st.booleans(), st.sampled_from(["small", "some none"]))
def test_everyone_counts_once_whatever_one_device_does(
    cluster: Cluster, kind: str, summing: bool, masses: str
) -> None:
    updates = train(cluster, masses)
    options = PlanOptions(accuracy=1e-4, summing=summing or kind != "relay")
    plan = make_plan(kind, cluster, options)
    check_promise(updates, plan, {})
    for device in cluster.devices:
        for fault in Fault:
            check_promise(updates, plan, {device: fault})


@settings(max_examples=100)
@given(
    clusters(),
    KINDS,
    st.booleans(),
    st.dictionaries(st.integers(0, 6), st.sampled_from(list(Fault))),
    st.sets(st.integers(0, 6)),
)
def test_everyone_counts_once_whatever_many_do(
    cluster: Cluster, kind: str, summing: bool, faults: dict[int, Fault], away: set[int]
) -> None:
    plan = make_plan(kind, cluster, PlanOptions(accuracy=1e-4, summing=summing or kind != "relay"))
    updates = {d: u for d, u in train(cluster, "small").items() if d not in away}
    check_promise(updates, plan, {d: f for d, f in faults.items() if d in updates})


@settings(max_examples=50)
@given(clusters(), KINDS, st.booleans())
@example(fleet_of({0: KEYS, 1: (), 2: KEYS, 3: KEYS[1:]}, [(0, 2), (1, 3)], 334), "relay", True)
def test_peers_step_by_step_get_the_bits_of_play(
    cluster: Cluster, kind: str, summing: bool
) -> None:
    updates = train(cluster, "uneven")
    plan = make_plan(kind, cluster, PlanOptions(accuracy=0.1, summing=summing or kind != "relay"))
    held: dict[int, tuple[Parcel, ...]] = {
        d: (Parcel.of(update, d),) for d, update in updates.items()
    }
    for step in plan.steps:
        post: dict[int, dict[int, tuple[Parcel, ...]]] = {d: {} for d in held}
        for me in cluster.devices[::-1]:
            held[me], messages = outgoing(held[me], step, me, summing=plan.summing)
            for receiver, parcels in messages.items():
                post[receiver][me] = parcels
        for me in cluster.devices:
            late_first = dict(reversed(post[me].items()))
            held[me] = incoming(held[me], late_first, step, me, summing=plan.summing)
    played = play(updates, plan)
    for d, parcels in played.held.items():
        mine = [p for p in held[d] if p.update.state]
        assert len(mine) == len(parcels)
        for a, b in zip(mine, parcels, strict=True):
            assert (a.update.mass, a.behind, a.intact) == (b.update.mass, b.behind, b.intact)
            for key, module in b.update.state.items():
                assert a.update.state[key]["w"].tobytes() == module["w"].tobytes()
