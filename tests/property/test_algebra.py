"""Laws of the module algebra: any tree of merges is one flat merge."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hffm_flower.errors import ModuleError
from hffm_flower.modules import (
    Merger,
    ModularUpdate,
    ModuleKey,
    ModuleKind,
    ModuleState,
    digest,
    merge,
    shapes,
)
from tests.support.memory import KEYS, A, H, module, same

SHAPES = {"scale": (), "bias": (4,), "weight": (3, 2)}
TOLERANCE = 1e-6

MASSES = st.one_of(
    st.just(0.0), st.integers(1, 500).map(float), st.floats(1e-3, 1e6, allow_nan=False)
)


def tensors(seed: int, scale: float) -> ModuleState:
    rng = np.random.default_rng(seed)
    return {n: np.asarray(scale * rng.normal(size=s), np.float32) for n, s in SHAPES.items()}


@st.composite
def fleets(draw: st.DrawFn, least: int = 1) -> list[ModularUpdate]:
    """Updates of some devices; modules are missing here and there, some have no mass."""
    scale = draw(st.sampled_from([1e-3, 1.0, 50.0]))
    fleet = []
    for _ in range(draw(st.integers(least, 12))):
        held = draw(st.sets(st.sampled_from(KEYS)))
        seed = draw(st.integers(0, 2**31))
        state = {k: tensors(seed + i, scale) for i, k in enumerate(sorted(held))}
        fleet.append(ModularUpdate(state, {k: draw(MASSES) for k in sorted(held)}))
    return fleet


def collapse(updates: Sequence[ModularUpdate], rng: random.Random) -> ModularUpdate:
    """Merge any groups of what is left, in any order, until one update is left."""
    nodes = list(updates)
    while len(nodes) > 1:
        rng.shuffle(nodes)
        size = rng.randint(1, len(nodes))
        nodes = [merge(nodes[:size]), *nodes[size:]]
    return merge(nodes)


def exact(updates: Sequence[ModularUpdate]) -> dict[ModuleKey, dict[str, NDArray[np.float64]]]:
    """The formula, in float64 and without `merge`."""
    means: dict[ModuleKey, dict[str, NDArray[np.float64]]] = {}
    for key in KEYS:
        holders = [u for u in updates if u.mass.get(key, 0.0) > 0]
        if holders:
            mass = np.array([u.mass[key] for u in holders])
            means[key] = {
                n: np.asarray(
                    np.tensordot(
                        mass / mass.sum(),
                        np.stack([u.state[key][n].astype(np.float64) for u in holders]),
                        axes=1,
                    )
                )
                for n in SHAPES
            }
    return means


def largest(updates: Sequence[ModularUpdate]) -> float:
    arrays = [a for u in updates for s in u.state.values() for a in s.values()]
    return max((float(np.abs(a).max()) for a in arrays), default=0.0)


def assert_close(got: ModularUpdate, want: Any, bound: float) -> None:
    assert got.state.keys() == want.keys()
    for key, state in got.state.items():
        assert state.keys() == want[key].keys()
        for name, array in state.items():
            assert array.shape == want[key][name].shape
            assert array.dtype == np.float32
            assert np.abs(array - want[key][name]).max() <= bound, f"{key}/{name}"


@given(fleets(), st.randoms(use_true_random=False))
def test_any_tree_is_the_flat_mean_and_the_flat_mean_is_the_formula(
    fleet: list[ModularUpdate], rng: random.Random
) -> None:
    bound = TOLERANCE * largest(fleet)
    flat, tree = merge(fleet), collapse(fleet, rng)
    assert_close(flat, exact(fleet), bound)
    assert_close(tree, flat.state, bound)
    for key, mass in flat.mass.items():
        assert tree.mass[key] == pytest.approx(mass, rel=1e-12)


@given(fleets(least=3), st.randoms(use_true_random=False))
def test_order_and_brackets_do_not_matter(fleet: list[ModularUpdate], rng: random.Random) -> None:
    bound = TOLERANCE * largest(fleet)
    want = merge(fleet).state
    shuffled = list(fleet)
    rng.shuffle(shuffled)
    assert_close(merge(shuffled), want, bound)
    a, b, c = fleet[0], fleet[1], fleet[2:]
    assert_close(merge([merge([a, b]), *c]), want, bound)
    assert_close(merge([a, merge([b, *c])]), want, bound)


@given(fleets())
def test_mass_is_conserved_per_module(fleet: list[ModularUpdate]) -> None:
    merged = merge(fleet)
    for key in KEYS:
        total = sum(u.mass.get(key, 0.0) for u in fleet)
        assert merged.mass.get(key, 0.0) == pytest.approx(total, rel=1e-12)
        assert (key in merged.mass) == (total > 0)


@given(fleets())
def test_the_same_order_gives_the_same_bits(fleet: list[ModularUpdate]) -> None:
    one, other = merge(fleet), merge(fleet)
    assert {k: digest(s) for k, s in one.state.items()} == {
        k: digest(s) for k, s in other.state.items()
    }


@given(st.integers(0, 2**31), st.floats(1e-3, 1e6), st.integers(1, 12))
def test_equal_states_merge_to_themselves(seed: int, mass: float, copies: int) -> None:
    state = {A: tensors(seed, 1.0)}
    updates = [ModularUpdate.of(state, mass * (i + 1)) for i in range(copies)]
    assert_close(merge(updates), state, TOLERANCE * largest(updates))


def test_nothing_merges_to_nothing() -> None:
    assert merge([]) == ModularUpdate({}, {})
    assert merge([ModularUpdate({}, {})]) == ModularUpdate({}, {})


@given(fleets(), st.lists(st.sampled_from(KEYS), max_size=3))
def test_what_has_no_mass_is_never_mixed_in(
    fleet: list[ModularUpdate], keys: list[ModuleKey]
) -> None:
    poison: ModuleState = {n: np.full(s, np.nan, np.float32) for n, s in SHAPES.items()}
    stale = ModularUpdate.of(dict.fromkeys(keys, poison), 0.0)
    with_stale, without = merge([stale, *fleet, stale]), merge(fleet)
    assert with_stale.mass == without.mass
    for key, state in without.state.items():
        assert same(with_stale.state[key], state)


@given(fleets(), st.floats(0.01, 100))
def test_scaling_all_masses_alike_keeps_the_mean(fleet: list[ModularUpdate], factor: float) -> None:
    scaled = merge(u.scaled(factor) for u in fleet)
    assert_close(scaled, merge(fleet).state, TOLERANCE * largest(fleet))


@given(fleets())
def test_merging_leaves_its_inputs_alone(fleet: list[ModularUpdate]) -> None:
    before = [[digest(s) for s in u.state.values()] for u in fleet]
    merged = merge(fleet)
    for state in merged.state.values():
        for array in state.values():
            array += np.float32(1)
    assert [[digest(s) for s in u.state.values()] for u in fleet] == before


@given(fleets(), st.sets(st.sampled_from(KEYS)))
def test_only_keeps_what_is_named_and_there(
    fleet: list[ModularUpdate], keys: set[ModuleKey]
) -> None:
    for update in fleet:
        kept = update.only(keys)
        assert kept.state.keys() == update.state.keys() & keys
        assert all(kept.state[k] is update.state[k] for k in kept.state)
        assert all(kept.mass[k] == update.mass[k] for k in kept.mass)


MISFITS = {
    "shape": {"w": np.zeros(3, np.float32)},
    "dtype": {"w": np.zeros(2, np.float64)},
    "names": {"v": np.zeros(2, np.float32)},
    "more": {"w": np.zeros(2, np.float32), "x": np.zeros(2, np.float32)},
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_an_update_that_does_not_fit_changes_nothing(misfit: str) -> None:
    merger = Merger()
    merger.add(ModularUpdate.of({A: module(1, 2), H: module(3, 4)}, 2.0))
    before = merger.result()
    bad: Any = MISFITS[misfit]
    # Adapter, which comes first, fits: it must not go in either.
    with pytest.raises(ModuleError, match="head/h"):
        merger.add(ModularUpdate.of({A: module(9, 9), H: bad}, 5.0))
    after = merger.result()
    assert after.mass == before.mass
    assert all(same(after.state[k], before.state[k]) for k in before.state)
    with pytest.raises(ModuleError, match="head/h"):
        merge([ModularUpdate.of({H: module(1, 1)}, 1.0), ModularUpdate.of({H: bad}, 1.0)])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_only_float32_is_averaged(dtype: type[Any]) -> None:
    wrong: Any = {"w": np.ones(2, dtype)}
    with pytest.raises(ModuleError, match=f"adapter/a/w is {np.dtype(dtype)}; only float32"):
        merge([ModularUpdate.of({A: wrong}, 1.0)])


def test_a_head_is_averaged_over_its_holders_only() -> None:
    """Per-node masses gave 9.6 where the mean over the head's examples is 10.0."""
    merged = merge(
        [
            ModularUpdate({A: module(0), H: module(10)}, {A: 100.0, H: 50.0}),
            ModularUpdate({A: module(1)}, {A: 300.0}),
            ModularUpdate({A: module(1), H: module(9)}, {A: 300.0, H: 0.0}),
        ]
    )
    assert merged.state[H]["w"].tolist() == [10.0]
    assert merged.mass == {A: 700.0, H: 50.0}
    assert merged.state[A]["w"][0] == pytest.approx(6 / 7, rel=1e-6)


@given(
    st.sampled_from(list(ModuleKind)),
    st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1),
)
def test_a_key_is_its_text(kind: ModuleKind, name: str) -> None:
    key = ModuleKey(kind, name)
    assert ModuleKey.parse(str(key)) == key


@given(st.integers(0, 2**31), st.sampled_from(sorted(SHAPES)), st.integers(0, 10**6))
def test_a_digest_sees_every_bit_and_ignores_the_order_of_names(
    seed: int, name: str, at: int
) -> None:
    state = dict(tensors(seed, 1.0))
    assert digest(dict(reversed(state.items()))) == digest(state)
    other = {n: a.copy() for n, a in state.items()}
    flat = other[name].reshape(-1)
    i = at % flat.size
    flat[i] = np.nextafter(flat[i], np.float32(np.inf))
    assert digest(other) != digest(state)


def test_a_digest_sees_names_shapes_and_dtypes() -> None:
    zeros = np.zeros(6, np.float32)
    as_int: Any = {"w": np.zeros(6, np.int32)}
    states: list[ModuleState] = [
        {"w": zeros}, {"v": zeros}, {"w": zeros.reshape(2, 3)}, {"w": zeros.reshape(3, 2)}, as_int
    ]  # fmt: skip
    assert len({digest(s) for s in states}) == len(states)
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert digest({"w": turned}) == digest({"w": turned.copy()})


def test_shapes_name_every_tensor() -> None:
    assert shapes({H: module(1), A: {"b": np.zeros((2, 3), np.float32)}}) == {
        "adapter/a/b": "float32[2,3]",
        "head/h/w": "float32[1]",
    }
