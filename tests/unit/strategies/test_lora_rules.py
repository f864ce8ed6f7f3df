"""Laws that every LoRA rule keeps, and what sets the rules apart."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hffm_flower.errors import ConfigError, ModuleError
from hffm_flower.lora import Scaling, product, rank_of
from hffm_flower.modules import ModularUpdate, ModuleState
from hffm_flower.records import to_bytes
from strategies.lora_rules import LORA_RULES, Factors, LoraExact, LoraNaive
from strategies.rules import Rule
from tests.support.lora import (
    ADAPTER,
    HEAD,
    aggregate,
    holding,
    layers,
    mean_product,
    only,
    pair,
    size,
)

RANKS = (4, 8, 1, 0, 6)
HOLDS = ((ADAPTER, HEAD), (ADAPTER,), (ADAPTER, HEAD), (HEAD,), (ADAPTER, HEAD))
MASSES = (3.0, 7.0, 1.5, 4.0, 0.1)
CASES = [(name, f) for name, rule in LORA_RULES.items() for f in rule.takes]
every_rule = pytest.mark.parametrize(("name", "factors"), CASES)
both_scales = pytest.mark.parametrize("how", list(Scaling))


def fleet(name: str, factors: Factors) -> list[ModularUpdate]:
    """Updates that the rule takes: of mixed ranks if it may, some without some module."""
    ranks = RANKS if LORA_RULES[name].mixed else [4] * len(RANKS)
    return [
        ModularUpdate.of({k: holding(layers(10 * i + len(str(k)), r), factors) for k in keys}, mass)
        for i, (r, keys, mass) in enumerate(zip(ranks, HOLDS, MASSES, strict=True))
    ]


def meaning(state: ModuleState, how: Scaling) -> Mapping[str, Any]:
    """What counts of a module: products of pairs; factors that are alone, themselves."""
    if any(".lora_A." in n for n in state) and any(".lora_B." in n for n in state):
        return product(state, how)
    return state


def near(a: ModularUpdate, b: ModularUpdate, how: Scaling) -> None:
    assert a.state.keys() == b.state.keys()
    assert a.mass == pytest.approx(b.mass, rel=1e-12)
    for key in a.state:
        mine, theirs = meaning(a.state[key], how), meaning(b.state[key], how)
        assert mine.keys() == theirs.keys()
        for layer, dense in mine.items():
            np.testing.assert_allclose(dense, theirs[layer], rtol=0, atol=1e-5)


@both_scales
@every_rule
def test_the_order_of_the_children_does_not_matter(
    name: str, factors: Factors, how: Scaling
) -> None:
    updates = fleet(name, factors)
    flat, _ = aggregate(name, updates, how)
    for order in itertools.islice(itertools.permutations(updates), 0, None, 17):
        near(aggregate(name, order, how)[0], flat, how)


@both_scales
@every_rule
@pytest.mark.parametrize("most", [0, 8])
def test_one_alone_keeps_its_bits(name: str, factors: Factors, how: Scaling, most: int) -> None:
    """Of any mass; a running mean, as a sum, only of a mass that divides without rounding."""
    for each in fleet(name, factors):
        mass = 4.0 if LORA_RULES[name].summable else 0.3
        alone = ModularUpdate.of(each.state, mass)
        got, rule = aggregate(name, [alone], how, most)
        assert to_bytes(got.state) == to_bytes(alone.state)
        assert got.mass == alone.mass
        assert not any(rule.tails.values())
        near(aggregate(name, [each], how, most)[0], each, how)


@every_rule
def test_mass_adds_up_over_the_holders(name: str, factors: Factors) -> None:
    updates = fleet(name, factors)
    got, rule = aggregate(name, updates)
    for key in (ADAPTER, HEAD):
        holders = [u.only([key]) for u in updates if key in u.state]
        assert got.mass[key] == pytest.approx(sum(u.mass[key] for u in holders), rel=1e-12)
        alone, _ = aggregate(name, holders)
        assert to_bytes(alone.state) == to_bytes({key: got.state[key]})
    assert all(tail >= 0.0 for tail in rule.tails.values())
    assert rule.tails.keys() <= got.state.keys()


@every_rule
def test_what_has_no_mass_counts_nowhere(name: str, factors: Factors) -> None:
    updates = fleet(name, factors)
    poison = {n: np.full_like(a, np.nan) for n, a in updates[0].state[ADAPTER].items()}
    idle = ModularUpdate.of({ADAPTER: poison, HEAD: {"w": np.zeros(3, np.float32)}}, 0.0)
    got, _ = aggregate(name, [idle, *updates, idle])
    want, _ = aggregate(name, updates)
    assert to_bytes(got.state) == to_bytes(want.state)
    assert got.mass == want.mass
    assert aggregate(name, [idle, ModularUpdate({}, {})])[0] == ModularUpdate({}, {})


@every_rule
def test_an_aggregate_is_not_its_senders_memory(name: str, factors: Factors) -> None:
    for updates in (fleet(name, factors), fleet(name, factors)[:1]):
        before = [to_bytes(u.state) for u in updates]
        for state in aggregate(name, updates)[0].state.values():
            for array in state.values():
                assert array.dtype == np.float32
                array += np.float32(1)
        assert [to_bytes(u.state) for u in updates] == before


@both_scales
@every_rule
@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_tree_is_the_flat_merge_where_that_is_promised(
    name: str, factors: Factors, how: Scaling, cut: int
) -> None:
    rule = LORA_RULES[name]
    assert rule.hierarchical or not rule.summable
    if not rule.hierarchical:
        return
    updates = fleet(name, factors)
    parts = [aggregate(name, part, how)[0] for part in (updates[:cut], updates[cut:])]
    near(aggregate(name, parts, how)[0], aggregate(name, updates, how)[0], how)


BAD: dict[str, Any] = {
    "is not a LoRA factor": {"up.bias": np.zeros(3, np.float32)},
    "float64": {
        "up.lora_A.weight": np.zeros((2, 9)), "up.lora_B.weight": np.zeros((12, 2))
    },
    "matrix or kernel": {
        "up.lora_A.weight": np.zeros((2, 9, 1), np.float32),
        "up.lora_B.weight": np.zeros((12, 2, 1), np.float32),
    },
}  # fmt: skip


@every_rule
@pytest.mark.parametrize("why", BAD)
def test_what_is_no_factor_is_refused_whole(name: str, factors: Factors, why: str) -> None:
    updates = fleet(name, factors)
    rule = LORA_RULES[name](Scaling.STANDARD, 0)
    rule.add(updates[0])
    bad = ModularUpdate.of(
        {ADAPTER: updates[0].state[ADAPTER], HEAD: holding(BAD[why], factors) or BAD[why]}, 2.0
    )
    with pytest.raises(ModuleError, match=f"head/lora.*{why}"):
        rule.add(bad)
    assert to_bytes(rule.result().state) == to_bytes(aggregate(name, updates[:1])[0].state)


@every_rule
def test_other_layers_or_factors_are_refused(name: str, factors: Factors) -> None:
    rule = LORA_RULES[name](Scaling.STANDARD, 0)
    rule.add(ModularUpdate.of({ADAPTER: holding(pair(0, 2, 9, 12), factors)}, 1.0))
    wider: dict[str, ModuleState] = {
        "sizes": pair(0, 2, 8, 11), "names": pair(0, 2, 9, 12, layer="down")
    }  # fmt: skip
    for other in wider.values():
        with pytest.raises(ModuleError, match="cannot merge adapter/lora"):
            rule.add(ModularUpdate.of({ADAPTER: holding(other, factors)}, 1.0))
    for takes in {Factors.A, Factors.B, Factors.BOTH} - set(LORA_RULES[name].takes):
        with pytest.raises(ModuleError, match=r"adapter/lora.* (holds|has no partner) "):
            rule.add(ModularUpdate.of({ADAPTER: holding(pair(0, 2, 9, 12), takes)}, 1.0))
    with pytest.raises(ModuleError, match="adapter/lora holds no"):
        rule.add(ModularUpdate.of({ADAPTER: {}}, 1.0))
    higher = ModularUpdate.of({ADAPTER: holding(pair(0, 3, 9, 12), factors)}, 1.0)
    if LORA_RULES[name].mixed:
        rule.add(higher)
        assert rule.result().mass == {ADAPTER: 2.0}
    else:
        with pytest.raises(ModuleError, match="cannot merge adapter/lora"):
            rule.add(higher)


def broken(**changes: Any) -> dict[str, Any]:
    return pair(0, 2, 9, 12) | {f"up.lora_{k}.weight": v for k, v in changes.items()}


PAIRS: dict[str, tuple[dict[str, Any], str]] = {
    "ranks": (broken(B=np.zeros((12, 3), np.float32)), "make no product"),
    "kinds": (broken(B=np.zeros((12, 2, 1, 1), np.float32)), "make no product"),
    "kernel": (broken(B=np.zeros((12, 2, 3, 3), np.float32)), "matrix or kernel"),
    "not finite": (broken(A=np.full((2, 9), np.inf, np.float32)), "not finite"),
    "high": (pair(0, 10, 9, 12), "rank 10 where at most 9"),
    "partner": ({"up.lora_A.weight": np.zeros((2, 9), np.float32)}, r"partner up\.lora_B"),
}


@pytest.mark.parametrize("rule", [LoraExact, LoraNaive])
@pytest.mark.parametrize("case", PAIRS)
def test_pairs_must_make_a_product(rule: type[LoraExact | LoraNaive], case: str) -> None:
    state, why = PAIRS[case]
    with pytest.raises(ModuleError, match=f"adapter/lora.*{why}"):
        rule().add(ModularUpdate.of({ADAPTER: state}, 1.0))


def mixed_fleet(ranks: tuple[int, ...]) -> list[ModularUpdate]:
    return [
        ModularUpdate.of({ADAPTER: pair(i, r, 64, 48)}, 1.0 + i % 3) for i, r in enumerate(ranks)
    ]


@both_scales
def test_a_mean_of_factors_is_far_from_the_mean_of_products(how: Scaling) -> None:
    updates = mixed_fleet((4, 8, 16, 8))
    true = mean_product(updates, ADAPTER, how)

    def error(name: str) -> float:
        got, _ = aggregate(name, updates, how)
        return float(np.linalg.norm(only(got.state[ADAPTER], how) - true) / np.linalg.norm(true))

    assert error("lora-naive") > 0.5
    assert error("lora-exact") < 1e-6


@both_scales
def test_naive_is_right_only_for_equal_updates(how: Scaling) -> None:
    """Also of other ranks: a common scale makes the padded factors those of one product."""
    state = pair(0, 4, 9, 12)
    got, _ = aggregate("lora-naive", [ModularUpdate.of({ADAPTER: state}, m) for m in (1, 3)], how)
    np.testing.assert_allclose(only(got.state[ADAPTER], how), only(state, how), atol=1e-5)
    small, large = pair(1, 2, 9, 12), pair(2, 4, 9, 12)
    for n in large:
        large[n][:] = 0.0
    updates = [ModularUpdate.of({ADAPTER: s}, 1.0) for s in (small, large)]
    got, rule = aggregate("lora-naive", updates, how)
    assert rank_of(got.state[ADAPTER]) == 4
    np.testing.assert_allclose(only(got.state[ADAPTER], how), only(small, how) / 4, atol=1e-5)
    assert rule.tails == {}


def test_a_bound_cuts_one_alone_and_says_what_was_lost() -> None:
    state = layers(3, 8)  # "up" of rank 8, "conv" of rank 5
    alone = [ModularUpdate.of({ADAPTER: state, HEAD: layers(4, 2)}, 2.0)]
    got, _ = aggregate("lora-exact", alone, most=5)
    cut = got.state[ADAPTER]
    assert to_bytes({HEAD: got.state[HEAD]}) == to_bytes({HEAD: alone[0].state[HEAD]})
    assert cut["conv.lora_A.weight"].tobytes() == state["conv.lora_A.weight"].tobytes()
    assert cut["up.lora_A.weight"].shape == (5, 9)
    dense = product(state, Scaling.STANDARD).values()
    for most in (5, 3):
        lost = sum(np.linalg.svd(d, compute_uv=False)[most:].sum() for d in dense)
        tails = aggregate("lora-exact", alone, most=most)[1].tails
        assert tails == {ADAPTER: pytest.approx(lost, rel=1e-5), HEAD: 0.0}


@both_scales
@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), rank=st.integers(1, 9))
def test_with_a_common_factor_the_mean_of_the_other_is_exact(
    how: Scaling, seed: int, rank: int
) -> None:
    common = holding(pair(seed, rank, 9, 12), Factors.A)
    whole = [
        ModularUpdate.of(
            {ADAPTER: {**common, **holding(pair(seed + i, rank, 9, 12), Factors.B)}}, m
        )
        for i, m in enumerate(MASSES)
    ]
    sent = [ModularUpdate({ADAPTER: holding(u.state[ADAPTER], Factors.B)}, u.mass) for u in whole]
    true, bound = mean_product(whole, ADAPTER, how), 1e-5 * size(whole, ADAPTER, how)
    for name in ("lora-ffa", "lora-alternate"):
        got = aggregate(name, sent, how)[0].state[ADAPTER]
        assert np.linalg.norm(only({**common, **got}, how) - true) <= bound
    exact = aggregate("lora-exact", whole, how, rank)[0].state[ADAPTER]
    assert np.linalg.norm(only(exact, how) - true) <= bound


def test_shared_rows_are_averaged_one_to_one() -> None:
    updates = fleet("lora-share-a", Factors.A)[:3]
    got = aggregate("lora-share-a", updates)[0].state[ADAPTER]["up.lora_A.weight"]
    rows = [u.state[ADAPTER]["up.lora_A.weight"].astype(np.float64) for u in updates]
    np.testing.assert_allclose(
        got, np.average(rows, axis=0, weights=MASSES[:3]), rtol=1e-5, atol=1e-6
    )


def test_a_lora_rule_is_a_rule_and_its_bound_is_not_negative() -> None:
    with pytest.raises(ConfigError, match="is -1; allowed: 0 or more"):
        LoraExact(most=-1)
    rules: list[Rule] = [rule(Scaling.STANDARD, 0) for rule in LORA_RULES.values()]
    assert all(r.result() == ModularUpdate({}, {}) for r in rules)
