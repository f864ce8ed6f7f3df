"""Aggregation rules for LoRA modules: nodes send factors, the mean wanted is of products.

Rules that take whole pairs keep the updates until the result is asked for; rules of one
factor are running means. All leave out what has no mass, and go in the order added.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import ClassVar, Final, Protocol

import numpy as np

from hffm_flower.errors import ConfigError, ModuleError
from hffm_flower.lora import (
    A_SUFFIX,
    Pair,
    Scaling,
    check_factor,
    check_pairs,
    exact,
    layout,
    pairs,
    rescaled,
    restore,
)
from hffm_flower.modules import Merger, ModularUpdate, ModuleKey, ModuleState

Most = int | Mapping[ModuleKey, int]


class Factors(StrEnum):
    """Which factors a module holds."""

    BOTH = "A and B"
    A = "A"
    B = "B"


class LoraRule(Protocol):
    """A `strategies.rules.Rule` for LoRA modules.

    Attributes:
        summable: As in `Rule`.
        hierarchical: A tree of merges is promised to be one flat merge, up to rounding,
            where nothing is cut on the way.
        mixed: Ranks may differ between updates.
        takes: What a module may hold.
        tails: After `result`: per module, the sum of the singular values that were cut,
            over its layers; it bounds the error in every norm. Empty if nothing ever is.
    """

    summable: ClassVar[bool]
    hierarchical: ClassVar[bool]
    mixed: ClassVar[bool]
    takes: ClassVar[tuple[Factors, ...]]
    tails: dict[ModuleKey, float]

    def __init__(self, scaling: Scaling = Scaling.STANDARD, most: Most = 0) -> None: ...

    def check(self, update: ModularUpdate) -> None:
        """Refuse what `add` cannot take.

        Raises:
            ModuleError: A module is not of LoRA factors, or of other layers than before.
        """
        ...

    def add(self, update: ModularUpdate) -> None:
        """Take one node's update; checked whole before anything of it is taken."""
        ...

    def result(self) -> ModularUpdate:
        """Aggregate of all modules with mass, and their total mass."""
        ...


class _Pairs(ABC):
    """Keeps updates made of whole pairs; one alone is its own aggregate, bit by bit."""

    summable: ClassVar[bool] = False
    mixed: ClassVar[bool] = True
    takes: ClassVar[tuple[Factors, ...]] = (Factors.BOTH,)

    def __init__(self, scaling: Scaling = Scaling.STANDARD, most: Most = 0) -> None:
        """Start with nothing.

        Args:
            scaling: Scale of the products by rank, common to all nodes.
            most: Largest rank of the aggregate, of all modules or module by module; 0, or a
                module without entry: no bound.

        Raises:
            ConfigError: ``most`` is negative.
        """
        for rank in [most] if isinstance(most, int) else most.values():
            if rank < 0:
                raise ConfigError(f"the largest rank of an aggregate is {rank}; allowed: 0 or more")
        self.tails: dict[ModuleKey, float] = {}
        self._scaling = scaling
        self._most = most
        self._held: dict[ModuleKey, list[tuple[float, ModuleState]]] = defaultdict(list)

    def check(self, update: ModularUpdate) -> None:
        """As in `LoraRule`."""
        for key in update.live():
            state = update.state[key]
            check_pairs(key, state)
            for _, other in self._held.get(key, [])[:1]:
                if layout(state) != layout(other):
                    raise ModuleError(
                        f"cannot merge {key}: layers {layout(state)} with {layout(other)}"
                    )

    def add(self, update: ModularUpdate) -> None:
        """As in `LoraRule`."""
        self.check(update)
        for key in update.live():
            self._held[key].append((float(update.mass[key]), update.state[key]))

    def result(self) -> ModularUpdate:
        """As in `LoraRule`."""
        self.tails = {}
        mass = {key: sum(m for m, _ in held) for key, held in self._held.items()}
        means = {
            key: self._mean(key, [(m / mass[key], s) for m, s in held])
            for key, held in self._held.items()
        }
        # Kept arrays are the senders' own: whoever writes to an aggregate must not change them.
        return ModularUpdate(
            {k: {n: a.copy() for n, a in s.items()} for k, s in means.items()}, mass
        )

    @abstractmethod
    def _mean(self, key: ModuleKey, shares: Sequence[tuple[float, ModuleState]]) -> ModuleState:
        """Aggregate of one module, from the nodes' shares of its mass."""


class LoraExact(_Pairs):
    r"""Mean of products: :math:`s(q) B A = \sum_k p_k s(r_k) B_k A_k`, for any ranks r_k.

    With ``most`` = 0 nothing is lost but rounding, and a tree of merges is one flat merge.
    With a bound, each merge gives the best approximation of that rank; over a tree the
    nuclear norm of the error is at most the cloud's tail plus the weighted mean of the
    edges' tails. Not summable: the sum's rank, so its size, grows with what it stands for.

    Source: Bai et al. 2024, arXiv 2402.11505 (FlexLoRA); Liu et al. 2025, arXiv 2503.00813
    (HLoRA); here by QR of the stacked factors (`hffm_flower.lora.exact`).
    """

    hierarchical: ClassVar[bool] = True

    def _mean(self, key: ModuleKey, shares: Sequence[tuple[float, ModuleState]]) -> ModuleState:
        each = [(p, pairs(state)) for p, state in shares]
        fresh: dict[str, Pair] = {}
        most = self._most if isinstance(self._most, int) else self._most.get(key, 0)
        self.tails[key] = 0.0
        for layer, (A_RI, _) in each[0][1].items():
            fits = most == 0 or A_RI.shape[0] <= most
            if len(each) == 1 and fits:
                continue
            layer_pairs = [(p, *own[layer]) for p, own in each]
            A_QI, B_OQ, tail = exact(layer_pairs, self._scaling, most)
            fresh[layer] = (A_QI, B_OQ)
            self.tails[key] += tail
        return restore(shares[0][1], fresh)


class LoraNaive(_Pairs):
    """Mean of each factor by itself, lower ranks padded with zeros: wrong, for comparison.

    The product of two means is not the mean of the products: it has cross terms between
    nodes and weighs each node's own product by its weight squared. ``most`` is not used: the
    rank is the largest one added. Factors at a common scale do add up, so that a tree of
    these means gives what a flat one gives, but neither is the mean update: the class
    promises nothing about trees (``hierarchical`` False). It is not summable either, since
    a partial mean's scale is bound to the largest rank seen so far.

    Source: padding as in Cho et al. 2024, arXiv 2401.06432 (HetLoRA).
    """

    hierarchical: ClassVar[bool] = False

    def _mean(self, key: ModuleKey, shares: Sequence[tuple[float, ModuleState]]) -> ModuleState:
        if len(shares) == 1:
            return shares[0][1]
        each = [(p, pairs(state)) for p, state in shares]
        means: dict[str, Pair] = {}
        for layer, (first_RI, first_OR) in each[0][1].items():
            rank = max(own[layer][0].shape[0] for _, own in each)
            A_RI = np.zeros((rank, first_RI.shape[1]))
            B_OR = np.zeros((first_OR.shape[0], rank))
            for p, own in each:
                A, B = own[layer]
                size = A.shape[0]
                if size < rank:
                    A, B = rescaled(A, B, rank, self._scaling)
                A_RI[:size] += p * A.astype(np.float64)
                B_OR[:, :size] += p * B.astype(np.float64)
            means[layer] = (A_RI.astype(np.float32), B_OR.astype(np.float32))
        return restore(shares[0][1], means)


class _OneFactor(Merger):
    """Plain mean of modules that hold one factor only; see `Merger` for how it is kept."""

    summable: ClassVar[bool] = True
    hierarchical: ClassVar[bool] = True
    mixed: ClassVar[bool] = False
    takes: ClassVar[tuple[Factors, ...]]

    def __init__(self, scaling: Scaling = Scaling.STANDARD, most: Most = 0) -> None:
        # Ranks are equal and stay so: the scale cancels, and there is nothing to cut.
        del scaling, most
        super().__init__()
        self.tails: dict[ModuleKey, float] = {}

    def check(self, update: ModularUpdate) -> None:
        """As in `LoraRule`."""
        for key in update.live():
            self._check(key, update.state[key])
        super().check(update)

    def _check(self, key: ModuleKey, state: ModuleState) -> None:
        for name, array in state.items():
            check_factor(key, name, array)
        held = {Factors.A if name.endswith(A_SUFFIX) else Factors.B for name in state}
        if len(held) != 1 or not held <= set(self.takes):
            found = " and ".join(sorted(held)) or "nothing"
            raise ModuleError(
                f"{key} holds {found}; {type(self).__name__} takes only: {' or '.join(self.takes)}"
            )


class LoraFfa(_OneFactor):
    """A is drawn once, the same for all, and frozen; B is trained and sent.

    Exact: with a common A the mean of ``B_k A`` is the mean of B times A. That needs one A,
    so equal ranks.

    Source: Sun et al. 2024, arXiv 2403.12313 (FFA-LoRA).
    """

    takes: ClassVar[tuple[Factors, ...]] = (Factors.B,)


class LoraAlternate(_OneFactor):
    """A and B are trained and sent in turns, the other one being frozen and common.

    Exact in each round, as one factor is the same for all who train; that needs equal ranks,
    and every node to have the last mean of the factor that rests.

    Source: Chen et al. 2025, arXiv 2502.01755 (RoLoRA).
    """

    takes: ClassVar[tuple[Factors, ...]] = (Factors.A, Factors.B)


class LoraShareA(_OneFactor):
    """A and B are trained; A is sent, B stays on its device.

    The mean of A is exact as a mean of factors; with B a node's own there is no common
    product that it could miss. The rows of A are averaged one to one: equal ranks.

    Source: Guo et al. 2024, arXiv 2410.01463 (FedSA-LoRA).
    """

    takes: ClassVar[tuple[Factors, ...]] = (Factors.A,)


LORA_RULES: Final[Mapping[str, type[LoraRule]]] = {
    "lora-exact": LoraExact,
    "lora-naive": LoraNaive,
    "lora-ffa": LoraFfa,
    "lora-alternate": LoraAlternate,
    "lora-share-a": LoraShareA,
}
"""Rules for LoRA modules, by name."""
