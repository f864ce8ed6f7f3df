"""Laws that every aggregation rule keeps, and those that only summable ones keep."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from hffm_flower.errors import ModuleError
from hffm_flower.modules import ModularUpdate, ModuleKey, merge
from hffm_flower.records import to_bytes
from strategies.rules import RULES, Rule

A, B, C = (ModuleKey.parse(text) for text in ("adapter/a", "head/b", "prompt/c"))
HOLDS = ((A, B), (A,), (A, B, C), (B,), (A, C))
SUMMABLE = [name for name, rule in RULES.items() if rule.summable]


def update(seed: int, keys: Iterable[ModuleKey], mass: float | None = None) -> ModularUpdate:
    rng = np.random.default_rng(seed)
    return ModularUpdate(
        {k: {"w": rng.standard_normal((2, 3)).astype(np.float32),
             "b": np.full((), rng.standard_normal(), np.float32)} for k in keys},
        {k: float(rng.integers(1, 9)) if mass is None else mass for k in keys},
    )  # fmt: skip


UPDATES = [update(seed, keys) for seed, keys in enumerate(HOLDS)]


def aggregate(name: str, updates: Iterable[ModularUpdate]) -> ModularUpdate:
    rule: Rule = RULES[name]()
    for each in updates:
        rule.add(each)
    return rule.result()


def near(a: ModularUpdate, b: ModularUpdate) -> None:
    assert a.state.keys() == b.state.keys()
    assert a.mass == pytest.approx(b.mass, rel=1e-12)
    for key, tensors in a.state.items():
        for name, array in tensors.items():
            np.testing.assert_allclose(array, b.state[key][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_the_order_of_the_children_does_not_matter(name: str) -> None:
    flat = aggregate(name, UPDATES)
    for order in itertools.islice(itertools.permutations(UPDATES), 0, None, 17):
        near(aggregate(name, order), flat)


@pytest.mark.parametrize("name", RULES)
def test_one_update_is_its_own_aggregate(name: str) -> None:
    for each in UPDATES:
        near(aggregate(name, [each]), each)
    power_of_two = update(9, (A, B), mass=4.0)
    alone = aggregate(name, [power_of_two])
    assert to_bytes(alone.state) == to_bytes(power_of_two.state)


@pytest.mark.parametrize("name", RULES)
def test_equal_updates_give_the_same_again(name: str) -> None:
    one = update(3, (A, B), mass=4.0)
    many = aggregate(name, [one] * 4)
    assert to_bytes(many.state) == to_bytes(one.state)
    assert many.mass == {A: 16.0, B: 16.0}


@pytest.mark.parametrize("name", RULES)
def test_a_module_is_that_of_its_holders(name: str) -> None:
    flat = aggregate(name, UPDATES)
    assert flat.state.keys() == {A, B, C}
    for key in (A, B, C):
        holders = [u.only([key]) for u, keys in zip(UPDATES, HOLDS, strict=True) if key in keys]
        alone = aggregate(name, holders)
        assert to_bytes(alone.state) == to_bytes({key: flat.state[key]})
        assert flat.mass[key] == alone.mass[key] == sum(u.mass[key] for u in holders)


@pytest.mark.parametrize("name", RULES)
def test_nothing_is_aggregated_of_nothing(name: str) -> None:
    assert aggregate(name, []).state == {}
    idle = update(1, (A,), mass=0.0)
    assert aggregate(name, [idle, ModularUpdate({}, {})]).mass == {}
    with_idle = aggregate(name, [idle, *UPDATES])
    assert to_bytes(with_idle.state) == to_bytes(aggregate(name, UPDATES).state)


@pytest.mark.parametrize("name", RULES)
def test_an_aggregate_is_between_its_updates(name: str) -> None:
    flat = aggregate(name, UPDATES)
    for key, tensors in flat.state.items():
        for tensor, array in tensors.items():
            assert array.dtype == np.float32
            own = np.stack([u.state[key][tensor] for u in UPDATES if key in u.state])
            assert array.shape == own.shape[1:]
            assert (own.min(axis=0) - 1e-6 <= array).all()
            assert (array <= own.max(axis=0) + 1e-6).all()


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    "odd",
    [
        {"w": np.zeros((3, 2), np.float32), "b": np.zeros((), np.float32)},
        {"w": np.zeros((2, 3), np.float32)},
        {"w": np.zeros((2, 3), np.float64), "b": np.zeros((), np.float32)},
    ],
)
def test_what_does_not_fit_is_refused_whole(
    name: str, odd: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]
) -> None:
    rule: Rule = RULES[name]()
    first = update(0, (A, B), mass=2.0)
    rule.add(first)
    with pytest.raises(ModuleError, match="head/b"):
        rule.add(ModularUpdate.of({A: update(5, (A,)).state[A], B: odd}, 2.0))
    near(rule.result(), first)  # nothing of the bad one was taken, of A neither


def partitions(items: Sequence[ModularUpdate]) -> Iterable[list[Sequence[ModularUpdate]]]:
    for cuts in itertools.chain.from_iterable(
        itertools.combinations(range(1, len(items)), n) for n in range(len(items))
    ):
        yield [items[a:b] for a, b in itertools.pairwise((0, *cuts, len(items)))]


@pytest.mark.parametrize("name", SUMMABLE)
def test_a_summable_rule_may_be_applied_in_groups(name: str) -> None:
    flat = aggregate(name, UPDATES)
    for groups in partitions(UPDATES):
        near(aggregate(name, [aggregate(name, group) for group in groups]), flat)


@pytest.mark.parametrize("name", [name for name in RULES if name not in SUMMABLE])
def test_a_rule_that_is_not_summable_needs_every_update_itself(name: str) -> None:
    """Why D2D may forward such updates, not sum them: in groups it gives something else."""
    flat = aggregate(name, UPDATES)
    grouped = [aggregate(name, [aggregate(name, g) for g in gs]) for gs in partitions(UPDATES)]
    assert any(to_bytes(g.state) != to_bytes(flat.state) for g in grouped)


def test_a_mean_is_weighted_and_a_median_is_not() -> None:
    light, heavy = update(1, (A,), mass=1.0), update(2, (A,), mass=3.0)
    x, y = light.state[A]["w"], heavy.state[A]["w"]
    mean, median = (aggregate(name, [light, heavy]).state[A]["w"] for name in ("mean", "median"))
    np.testing.assert_allclose(mean, 0.25 * x + 0.75 * y, rtol=1e-6)
    np.testing.assert_allclose(median, 0.5 * x + 0.5 * y, rtol=1e-6)
    near(aggregate("mean", UPDATES), merge(UPDATES))


def test_a_median_withstands_one_wild_update() -> None:
    good = [update(k, (A,), mass=2.0) for k in range(4)]
    wild = ModularUpdate.of({A: {n: a * 1e9 for n, a in good[0].state[A].items()}}, 2.0)
    median = aggregate("median", [*good, wild]).state[A]["w"]
    own = np.stack([u.state[A]["w"] for u in good])
    assert (own.min(axis=0) <= median).all()
    assert (median <= own.max(axis=0)).all()
