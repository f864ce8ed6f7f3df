r"""Algebra of low-rank updates: factors are stored, products are what counts.

A LoRA module holds, for each layer, ``<layer>.lora_A.weight`` of shape [R, I] and
``<layer>.lora_B.weight`` of shape [O, R]; a convolution [R, I, kh, kw] and [O, R, 1, 1].
Its update is :math:`s(R)\,B A`. Ranks may differ between nodes and layers; rank 0 is a
product of zero. Factors are float32; what is decomposed is decomposed in float64.

Shape suffixes: R rank, I inputs (of a convolution: times its kernel), O outputs.

Source: Hu et al. 2021, arXiv 2106.09685, Sec. 4.1.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hffm_flower.errors import ModuleError
from hffm_flower.modules import ModuleKey, ModuleState, Tensor

A_SUFFIX: Final = ".lora_A.weight"
B_SUFFIX: Final = ".lora_B.weight"
NEGLIGIBLE: Final = 1e-7
"""Directions below this share of the largest one are dropped: float32 carries no more."""

Pair = tuple[Tensor, Tensor]
"""Factors of one layer as matrices: A [R, I] and B [O, R]."""

Layout = dict[str, tuple[tuple[int, ...], ...]]


class Scaling(StrEnum):
    """How the factor before ``B A`` depends on the rank; alpha is common and left out.

    Source: standard: Hu et al. 2021, arXiv 2106.09685; rsLoRA: Kalajdzievski 2023,
    arXiv 2312.03732.
    """

    STANDARD = "standard"
    RSLORA = "rslora"

    def factor(self, rank: int) -> float:
        """s(rank) with alpha = 1: 1 / rank or 1 / sqrt(rank); 0 at rank 0."""
        if rank == 0:
            return 0.0
        return 1.0 / (rank if self is Scaling.STANDARD else math.sqrt(rank))


def is_lora(names: Collection[str]) -> bool:
    """Whether there are ``names``, and all are those of LoRA factors, paired or not."""
    return bool(names) and all(layer_of(n) for n in names)


def layer_of(name: str) -> str:
    """Layer that the factor ``name`` belongs to; empty if it is no factor's name."""
    for suffix in (A_SUFFIX, B_SUFFIX):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return ""


def pairs(state: ModuleState) -> dict[str, Pair]:
    """Factors of each layer as matrices, views where that is possible."""
    found = {}
    for name, A in state.items():
        if name.endswith(A_SUFFIX):
            layer = name.removesuffix(A_SUFFIX)
            B = state[f"{layer}{B_SUFFIX}"]
            rank = A.shape[0]
            A_RI = A.reshape(rank, math.prod(A.shape[1:]))
            found[layer] = (A_RI, B.reshape(B.shape[0], rank))
    return found


def restore(state: ModuleState, changed: Mapping[str, Pair]) -> ModuleState:
    """``state`` with the factors of some layers replaced, in the layers' own shapes."""
    fresh = dict(state)
    for layer, (A_RI, B_OR) in changed.items():
        a, b = f"{layer}{A_SUFFIX}", f"{layer}{B_SUFFIX}"
        rank, outputs = A_RI.shape[0], B_OR.shape[0]
        fresh[a] = np.ascontiguousarray(A_RI).reshape(rank, *state[a].shape[1:])
        fresh[b] = np.ascontiguousarray(B_OR).reshape(outputs, rank, *state[b].shape[2:])
    return fresh


def layout(state: ModuleState) -> Layout:
    """Shapes of the factors without their rank: what nodes of any rank have in common."""
    return {
        n: (a.shape[1:],) if n.endswith(A_SUFFIX) else (a.shape[:1], a.shape[2:])
        for n, a in state.items()
    }


def rank_of(state: ModuleState) -> int:
    """Largest rank of all layers; 0 if there are none."""
    return max((len(A) for A, _ in pairs(state).values()), default=0)


def check_pairs(key: ModuleKey, state: ModuleState) -> None:
    """Check that ``state`` is made of whole, finite factor pairs.

    Raises:
        ModuleError: A tensor is no factor or not finite float32, a factor has no partner,
            or the shapes of two partners are not those of one product of full rank.
    """
    if not state:
        raise ModuleError(f"{key} holds no LoRA factors")
    for name, array in state.items():
        check_factor(key, name, array)
        layer = layer_of(name)
        partner = f"{layer}{B_SUFFIX if name.endswith(A_SUFFIX) else A_SUFFIX}"
        if partner not in state:
            raise ModuleError(f"{key}/{name} has no partner {partner}")
        if not np.isfinite(array).all():
            raise ModuleError(f"{key}/{name} is not finite")
    for name, A in state.items():
        if not name.endswith(A_SUFFIX):
            continue
        layer = name.removesuffix(A_SUFFIX)
        B = state[f"{layer}{B_SUFFIX}"]
        if A.ndim != B.ndim or A.shape[0] != B.shape[1]:
            raise ModuleError(f"{key}/{layer}: A {A.shape} and B {B.shape} make no product")
        most = min(B.shape[0], math.prod(A.shape[1:]))
        if A.shape[0] > most:
            raise ModuleError(f"{key}/{layer}: rank {A.shape[0]} where at most {most} has a use")


def check_factor(key: ModuleKey, name: str, array: Tensor) -> None:
    """Check one factor by itself.

    Raises:
        ModuleError: Not a factor's name, not float32, or not [R, I], [O, R] or a kernel.
    """
    if not layer_of(name):
        raise ModuleError(f"{key}/{name} is not a LoRA factor: <layer>{A_SUFFIX} or {B_SUFFIX}")
    if array.dtype != np.float32:
        raise ModuleError(f"{key}/{name} is {array.dtype}; only float32 is averaged")
    pointwise = name.endswith(A_SUFFIX) or array.shape[2:] in {(), (1, 1)}
    if array.ndim not in {2, 4} or not pointwise:
        raise ModuleError(f"{key}/{name} has shape {array.shape}; a matrix or kernel is needed")


def exact(
    contributions: Sequence[tuple[float, Tensor, Tensor]], scaling: Scaling, most: int = 0
) -> tuple[Tensor, Tensor, float]:
    r"""Factors of the weighted mean of products, without ever forming a product.

    The scaled factors are stacked, so that :math:`\sum_k p_k s(r_k) B_k A_k = B A`; then
    :math:`B = Q_B R_B`, :math:`A^T = Q_A R_A` and the SVD of the small :math:`R_B R_A^T`
    gives that of the mean. With R the sum of ranks: O((O + I) R^2 + R^3) steps.

    Args:
        contributions: Weight >= 0 (they sum to 1), A [R_k, I] and B [O, R_k]; at least one.
        scaling: Scale of each product by its rank, also of the one returned.
        most: Largest rank of the answer; 0: all directions that are not negligible.

    Returns:
        A [Q, I] and B [O, Q] of the best approximation of rank Q, and the sum of all
        singular values that it leaves out: it bounds every norm of the error from above.

    Raises:
        ValueError: ``most`` is negative.

    Source: mean of products: Bai et al. 2024, arXiv 2402.11505; SVD of a low-rank product
    by QR: Bebendorf 2008, "Hierarchical Matrices".
    """
    if most < 0:
        raise ValueError(f"most must not be negative: {most}")
    return _exact(contributions, scaling, most or sys.maxsize)


def fit(state: ModuleState, rank: int, scaling: Scaling) -> ModuleState:
    """Bring every layer to ``rank`` or below, by the best approximation of its product.

    Layers of that rank or less keep their arrays; of the others, null directions are dropped.

    Raises:
        ValueError: ``rank`` is negative.
    """
    if rank < 0:
        raise ValueError(f"rank must not be negative: {rank}")
    cut: dict[str, Pair] = {}
    for layer, (A_RI, B_OR) in pairs(state).items():
        if A_RI.shape[0] > rank:
            cut[layer] = _exact([(1.0, A_RI, B_OR)], scaling, rank)[:2]
    return restore(state, cut)


def pad(state: ModuleState, rank: int, fill: ModuleState, scaling: Scaling) -> ModuleState:
    """Bring every layer up to ``rank``, or to the rank of ``fill`` where that is lower.

    New rows of A are those of ``fill``, new columns of B are zero, and what was there is
    rescaled: the product is the same, and there is room to train. Layers that have the
    rank keep their arrays.

    Args:
        state: Layers of any rank that is not above the one wanted; see `fit`.
        rank: Rank of the receiver.
        fill: Its initial values, for the same layers.
        scaling: Scale of the products by rank.

    Raises:
        ModuleError: Other layers or sizes, or a rank above the one wanted.

    Source: Bai et al. 2024, arXiv 2402.11505; Liu et al. 2025, arXiv 2503.00813.
    """
    if layout(state) != layout(fill):
        raise ModuleError(f"cannot pad {layout(state)} by {layout(fill)}")
    fills, grown = pairs(fill), dict[str, Pair]()
    for layer, (A_RI, B_OR) in pairs(state).items():
        own, want = A_RI.shape[0], min(rank, fills[layer][0].shape[0])
        if own > want:
            raise ModuleError(f"cannot pad {layer} of rank {own} to rank {want}: fit it first")
        if own < want:
            A_RI, B_OR = rescaled(A_RI, B_OR, want, scaling)
            zeros = np.zeros((B_OR.shape[0], want - own), np.float32)
            A_RI = np.concatenate([A_RI, fills[layer][0][own:want]])
            grown[layer] = (A_RI, np.concatenate([B_OR, zeros], axis=1))
    return restore(state, grown)


def compress(state: ModuleState, scaling: Scaling) -> ModuleState:
    """Drop directions whose column of B or row of A is all zero; the product is the same.

    Layers without any keep their arrays.
    """
    less: dict[str, Pair] = {}
    for layer, (A_RI, B_OR) in pairs(state).items():
        used_R = A_RI.any(axis=1) & B_OR.any(axis=0)
        if not used_R.all():
            rank = int(used_R.sum())
            A_RI, B_OR = rescaled(A_RI, B_OR, rank, scaling)
            less[layer] = (A_RI[used_R], B_OR[:, used_R])
    return restore(state, less)


def product(state: ModuleState, scaling: Scaling) -> dict[str, NDArray[np.float64]]:
    """The update of each layer, ``s(R) B A`` of shape [O, I], in float64."""
    return {
        layer: scaling.factor(A_RI.shape[0]) * (B_OR.astype(np.float64) @ A_RI.astype(np.float64))
        for layer, (A_RI, B_OR) in pairs(state).items()
    }


def rescaled(A_RI: Tensor, B_OR: Tensor, rank: int, scaling: Scaling) -> Pair:
    """Factors that, as a part of others of ``rank``, have the product that they have now."""
    own, other = scaling.factor(A_RI.shape[0]), scaling.factor(rank)
    ratio = math.sqrt(own / other) if other else 0.0
    A64_RI, B64_OR = A_RI.astype(np.float64), B_OR.astype(np.float64)
    return (ratio * A64_RI).astype(np.float32), (ratio * B64_OR).astype(np.float32)


def _exact(
    contributions: Sequence[tuple[float, Tensor, Tensor]], scaling: Scaling, most: int
) -> tuple[Tensor, Tensor, float]:
    roots = [math.sqrt(p * scaling.factor(A.shape[0])) for p, A, _ in contributions]
    stacked = zip(roots, contributions, strict=True)
    sides = [(c * A.astype(np.float64), c * B.astype(np.float64)) for c, (_, A, B) in stacked]
    A_RI = np.concatenate([A for A, _ in sides])
    B_OR = np.concatenate([B for _, B in sides], axis=1)
    size_R = np.linalg.norm(B_OR, axis=0) * np.linalg.norm(A_RI, axis=1)
    live_R = size_R > 0.0
    A_RI, B_OR = A_RI[live_R], B_OR[:, live_R]
    (outputs, rank), inputs = B_OR.shape, A_RI.shape[1]
    if rank == 0:
        return np.zeros((0, inputs), np.float32), np.zeros((outputs, 0), np.float32), 0.0
    QB, RB = np.linalg.qr(B_OR)
    QA, RA = np.linalg.qr(A_RI.T)
    U, values, Vt = np.linalg.svd(RB @ RA.T, full_matrices=False)
    # Where contributions cancel, what is left of them is rounding, however large beside the rest.
    rounding = np.finfo(np.float64).eps * max(outputs, inputs, rank) * float(size_R.sum())
    kept = min(most, int((values > max(NEGLIGIBLE * values[0], rounding)).sum()))
    left, right = QB @ U[:, :kept], Vt[:kept] @ QA.T
    peak = np.take_along_axis(left, np.abs(left).argmax(axis=0, keepdims=True), axis=0)[0]
    root = np.where(peak < 0.0, -1.0, 1.0) * np.sqrt(values[:kept])
    root /= math.sqrt(scaling.factor(kept) or 1.0)
    tail = float(values[kept:].sum())
    return (root[:, None] * right).astype(np.float32), (left * root).astype(np.float32), tail
