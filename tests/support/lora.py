"""Random LoRA modules, and dense matrices to hold them against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from hffm_flower.lora import Scaling, product
from hffm_flower.modules import ModularUpdate, ModuleKey, ModuleState
from strategies.lora_rules import LORA_RULES, Factors, LoraRule

Dense = NDArray[np.float64]
ADAPTER = ModuleKey.parse("adapter/lora")
HEAD = ModuleKey.parse("head/lora")


def pair(
    seed: int, rank: int, inputs: int, outputs: int, *, kernel: int = 0, layer: str = "up"
) -> dict[str, NDArray[np.float32]]:
    """One layer's factors, normal; with a ``kernel``, those of a convolution."""
    rng = np.random.default_rng(seed)
    a = (rank, inputs, kernel, kernel) if kernel else (rank, inputs)
    b = (outputs, rank, 1, 1) if kernel else (outputs, rank)
    return {
        f"{layer}.lora_A.weight": rng.standard_normal(a).astype(np.float32),
        f"{layer}.lora_B.weight": rng.standard_normal(b).astype(np.float32),
    }


def layers(seed: int, rank: int) -> dict[str, NDArray[np.float32]]:
    """A module of a matrix [12, 9], of that rank, and a convolution [8, 3, 3, 3] of up to 5."""
    conv = pair(seed + 1000, min(rank, 5), 3, 8, kernel=3, layer="conv")
    return pair(seed, rank, 9, 12, layer="up") | conv


def holding(state: ModuleState, factors: Factors) -> ModuleState:
    """What of ``state`` a rule takes that takes those ``factors``."""
    if factors is Factors.BOTH:
        return state
    return {n: a for n, a in state.items() if f".lora_{factors}." in n}


def mean_product(updates: Sequence[ModularUpdate], key: ModuleKey, scaling: Scaling) -> Dense:
    """Weighted mean of the products of the module's only layer, by the formula."""
    total = sum(u.mass[key] for u in updates)
    parts = [u.mass[key] / total * only(u.state[key], scaling) for u in updates]
    return np.asarray(np.sum(parts, axis=0))


def only(state: ModuleState, scaling: Scaling) -> Dense:
    """Product of the only layer."""
    (dense,) = product(state, scaling).values()
    return dense


def size(updates: Sequence[ModularUpdate], key: ModuleKey, scaling: Scaling) -> float:
    """What rounding is relative to: the mean of the products' norms."""
    total = sum(u.mass[key] for u in updates)
    norms = [np.linalg.norm(only(u.state[key], scaling)) * u.mass[key] for u in updates]
    return float(sum(norms) / total)


def aggregate(
    name: str, updates: Iterable[ModularUpdate], scaling: Scaling = Scaling.STANDARD, most: int = 0
) -> tuple[ModularUpdate, LoraRule]:
    """Result of the rule called ``name``, and the rule itself."""
    rule = LORA_RULES[name](scaling, most)
    for update in updates:
        rule.add(update)
    return rule.result(), rule
