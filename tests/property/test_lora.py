"""Laws of the LoRA algebra, against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hffm_flower.errors import ModuleError
from hffm_flower.lora import (
    Scaling,
    check_pairs,
    compress,
    exact,
    fit,
    is_lora,
    layout,
    pad,
    pairs,
    product,
    rank_of,
)
from hffm_flower.modules import ModularUpdate
from tests.support.lora import ADAPTER, aggregate, layers, mean_product, only, pair, size

ROUNDING = 1e-5
SCALINGS = st.sampled_from(list(Scaling))
MASSES = st.one_of(st.integers(1, 500).map(float), st.floats(1e-3, 1e6))
SEEDS = st.integers(0, 2**31)


@st.composite
def fleets(draw: st.DrawFn, least: int = 1) -> list[ModularUpdate]:
    """Updates of one layer, a matrix or a convolution, each of its own rank and mass."""
    kernel = draw(st.sampled_from([0, 0, 1, 2]))
    inputs, outputs = draw(st.integers(1, 24 if kernel < 2 else 6)), draw(st.integers(1, 24))
    top = min(inputs * max(kernel, 1) ** 2, outputs)
    seed = draw(SEEDS)
    ranks = draw(st.lists(st.integers(0, top), min_size=least, max_size=7))
    return [
        ModularUpdate.of({ADAPTER: pair(seed + i, r, inputs, outputs, kernel=kernel)}, draw(MASSES))
        for i, r in enumerate(ranks)
    ]


@given(fleets(), SCALINGS)
def test_kept_whole_it_is_the_mean_of_products(fleet: list[ModularUpdate], how: Scaling) -> None:
    got, rule = aggregate("lora-exact", fleet, how)
    check_pairs(ADAPTER, got.state[ADAPTER])
    assert layout(got.state[ADAPTER]) == layout(fleet[0].state[ADAPTER])
    error = only(got.state[ADAPTER], how) - mean_product(fleet, ADAPTER, how)
    bound = ROUNDING * size(fleet, ADAPTER, how)
    assert np.linalg.norm(error) <= bound
    assert 0.0 <= rule.tails[ADAPTER] <= bound
    ranks = [rank_of(u.state[ADAPTER]) for u in fleet]
    assert rank_of(got.state[ADAPTER]) <= sum(ranks)


@given(fleets(), SCALINGS, st.integers(1, 24))
def test_bounded_it_is_the_best_of_that_rank(
    fleet: list[ModularUpdate], how: Scaling, most: int
) -> None:
    got, rule = aggregate("lora-exact", fleet, how, most)
    true = mean_product(fleet, ADAPTER, how)
    rounding = ROUNDING * size(fleet, ADAPTER, how)
    error = np.linalg.norm(only(got.state[ADAPTER], how) - true)
    left_out = np.linalg.svd(true, compute_uv=False)[most:]
    assert rank_of(got.state[ADAPTER]) <= most
    assert error <= rule.tails[ADAPTER] + rounding
    assert error == pytest.approx(np.linalg.norm(left_out), abs=rounding)
    assert rule.tails[ADAPTER] == pytest.approx(left_out.sum(), abs=rounding)


@given(st.data(), SCALINGS, st.integers(0, 12), st.integers(0, 12))
def test_tails_bound_the_error_of_two_tiers(
    data: st.DataObject, how: Scaling, edge_most: int, cloud_most: int
) -> None:
    fleet = data.draw(fleets(least=2))
    cut = data.draw(st.integers(1, len(fleet) - 1))
    merged, bound = [], 0.0
    total = sum(u.mass[ADAPTER] for u in fleet)
    for group in (fleet[:cut], fleet[cut:]):
        update, rule = aggregate("lora-exact", group, how, edge_most)
        merged.append(update)
        bound += update.mass[ADAPTER] / total * rule.tails[ADAPTER]
    got, rule = aggregate("lora-exact", merged, how, cloud_most)
    bound += rule.tails[ADAPTER]
    error = only(got.state[ADAPTER], how) - mean_product(fleet, ADAPTER, how)
    nuclear = float(np.linalg.svd(error, compute_uv=False).sum())
    assert nuclear <= bound + ROUNDING * size(fleet, ADAPTER, how)
    assert got.mass[ADAPTER] == pytest.approx(total, rel=1e-12)


@given(fleets(), SCALINGS, st.integers(0, 24))
def test_fitting_is_the_best_approximation_and_otherwise_nothing(
    fleet: list[ModularUpdate], how: Scaling, rank: int
) -> None:
    state = fleet[0].state[ADAPTER]
    fitted = fit(state, rank, how)
    check_pairs(ADAPTER, fitted)
    assert layout(fitted) == layout(state)
    assert rank_of(fitted) <= rank
    if rank_of(state) <= rank:
        assert all(fitted[n] is a for n, a in state.items())
        return
    true = only(state, how)
    best = np.linalg.norm(np.linalg.svd(true, compute_uv=False)[rank:])
    error = np.linalg.norm(only(fitted, how) - true)
    assert error == pytest.approx(best, abs=ROUNDING * float(np.linalg.norm(true)))


@given(SEEDS, SCALINGS, st.integers(0, 8), st.integers(0, 8))
def test_padding_keeps_products_and_fills_the_room(
    seed: int, how: Scaling, own: int, rank: int
) -> None:
    state, fill = layers(seed, own), layers(seed + 1, 8)
    if own > rank:
        with pytest.raises(ModuleError, match=r"up of rank .* fit it first"):
            pad(state, rank, fill, how)
        return
    grown = pad(state, rank, fill, how)
    check_pairs(ADAPTER, grown)
    before, after, fills = product(state, how), product(grown, how), pairs(fill)
    for layer, (A_RI, B_OR) in pairs(grown).items():
        was = pairs(state)[layer][0].shape[0]
        want = min(rank, fills[layer][0].shape[0])
        assert A_RI.shape[0] == want
        assert A_RI[was:].tobytes() == fills[layer][0][was:want].tobytes()
        assert not B_OR[:, was:].any()
        np.testing.assert_allclose(after[layer], before[layer], rtol=0, atol=1e-5)
        if was == want:
            assert all(grown[n] is state[n] for n in state if n.startswith(layer))
    assert layout(grown) == layout(state)
    small = compress(grown, how)
    assert [a.shape for a in small.values()] == [a.shape for a in state.values()]
    for name, array in state.items():
        np.testing.assert_allclose(small[name], array, rtol=1e-6)


@given(SEEDS, SCALINGS, st.integers(0, 8), st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7)))
def test_compressing_drops_what_is_null_and_nothing_else(
    seed: int, how: Scaling, rank: int, rows: set[int], columns: set[int]
) -> None:
    state = pair(seed, rank, 9, 12)
    null = {r for r in rows | columns if r < rank}
    for r in null & rows:
        state["up.lora_A.weight"][r] = 0.0
    for r in null & columns:
        state["up.lora_B.weight"][:, r] = 0.0
    small = compress(state, how)
    assert rank_of(small) == rank - len(null)
    np.testing.assert_allclose(only(small, how), only(state, how), rtol=0, atol=1e-5)
    if not null:
        assert all(small[n] is a for n, a in state.items())


@given(st.integers(1, 10**6))
def test_scales_are_those_of_the_papers(rank: int) -> None:
    assert Scaling.STANDARD.factor(rank) * rank == pytest.approx(1.0)
    assert Scaling.RSLORA.factor(rank) ** 2 * rank == pytest.approx(1.0)
    assert Scaling.STANDARD.factor(0) == Scaling.RSLORA.factor(0) == 0.0


@given(SEEDS, SCALINGS, st.integers(1, 8))
def test_factors_are_balanced_and_their_signs_are_set(seed: int, how: Scaling, most: int) -> None:
    A, B = pair(seed, 8, 10, 9).values()
    A_QI, B_OQ, _ = exact([(1.0, A, B)], how, most)
    again = exact([(1.0, A, B)], how, most)
    assert A_QI.tobytes() == again[0].tobytes()
    assert B_OQ.tobytes() == again[1].tobytes()
    assert A_QI.dtype == B_OQ.dtype == np.float32
    assert (np.take_along_axis(B_OQ, np.abs(B_OQ).argmax(axis=0)[None], axis=0) > 0).all()
    size_Q = np.linalg.norm(B_OQ, axis=0)
    np.testing.assert_allclose(np.linalg.norm(A_QI, axis=1), size_Q, rtol=1e-5)
    assert (np.diff(size_Q) <= 1e-6 * size_Q[0]).all()
    gram = (A_QI / size_Q[:, None]) @ (A_QI / size_Q[:, None]).T
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-4)


@given(SEEDS, SCALINGS, st.integers(-6, 6))
def test_opposite_updates_leave_nothing(seed: int, how: Scaling, power: int) -> None:
    A, B = pair(seed, 4, 10, 9).values()
    A, B = A * np.float32(10.0**power), B * np.float32(10.0**-power)
    A_QI, B_OQ, tail = exact([(0.5, A, B), (0.5, -A, B)], how)
    assert A_QI.shape == (0, 10)
    assert B_OQ.shape == (9, 0)
    assert tail < 1e-10


def test_products_of_zero_have_rank_zero() -> None:
    start = pair(0, 4, 6, 5)
    start["up.lora_B.weight"][:] = 0.0
    A, B = start.values()
    A_QI, B_OQ, tail = exact([(0.25, A, B), (0.75, A[:2], B[:, :2])], Scaling.STANDARD)
    assert (A_QI.shape, B_OQ.shape, tail) == ((0, 6), (5, 0), 0.0)


def test_a_negligible_direction_is_dropped_and_counted() -> None:
    A = np.eye(3, dtype=np.float32)
    B = np.diag(np.array([1.0, 1e-3, 1e-9], np.float32))
    A_QI, _, tail = exact([(1.0, A, B)], Scaling.STANDARD)
    assert A_QI.shape == (2, 3)
    assert tail == pytest.approx(1e-9 / 3, rel=1e-6)


def test_no_rank_is_negative() -> None:
    state = pair(0, 2, 4, 4)
    with pytest.raises(ValueError, match="must not be negative: -1"):
        fit(state, -1, Scaling.STANDARD)
    with pytest.raises(ValueError, match="must not be negative: -1"):
        exact([(1.0, *pairs(state)["up"])], Scaling.STANDARD, -1)


def test_names_tell_what_is_lora() -> None:
    names = list(layers(0, 2))
    assert is_lora(names)
    assert is_lora(names[:3])  # a pair and one without partner: `check_pairs` says so
    assert not is_lora([*names, "up.bias"])
    assert is_lora([n for n in names if "lora_A" in n])  # rules of one factor
    assert not is_lora([])
    assert not is_lora(["lora_A.weight", ".lora_A.weight", ".lora_B.weight"])
    assert not is_lora([])
    assert rank_of({}) == 0


def test_only_the_same_layers_are_padded() -> None:
    with pytest.raises(ModuleError, match="cannot pad"):
        pad(pair(0, 2, 4, 4), 3, pair(0, 3, 5, 4), Scaling.STANDARD)
