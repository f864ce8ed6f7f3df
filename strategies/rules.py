"""Aggregation rules: how the updates of several nodes become one, module by module.

A rule is a class that updates are added to, one by one in the order of the nodes' index.
It says whether it is ``summable``: whether a mean of some updates, with their mass, may
stand for them, so that updates can be summed on their way through a cluster. A new rule is
a class and one line in `RULES`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol

import numpy as np

from hffm_flower.errors import ModuleError
from hffm_flower.lora import Scaling, is_lora
from hffm_flower.modules import Merger, ModularUpdate, ModuleKey, ModuleState
from strategies.lora_rules import LORA_RULES


class Rule(Protocol):
    """Takes updates, gives their aggregate."""

    summable: ClassVar[bool]

    def check(self, update: ModularUpdate) -> None:
        """Refuse what `add` cannot take.

        Raises:
            ModuleError: A module has other tensors, shapes or dtypes than before.
        """
        ...

    def add(self, update: ModularUpdate) -> None:
        """Take one node's update; checked whole before anything of it is taken."""
        ...

    def result(self) -> ModularUpdate:
        """Aggregate of all modules with mass, and their total mass."""
        ...


class Median:
    """Coordinate-wise median of the nodes' parameters, each node counting once.

    Robust against a minority of arbitrary updates; not summable, and a median over edges of
    medians over devices is not the median over devices. Memory is that of all updates.

    Source: Yin et al. 2018, arXiv 1803.01498, Alg. 1, option I.
    """

    summable: ClassVar[bool] = False

    def __init__(self) -> None:
        self._states: dict[ModuleKey, list[ModuleState]] = defaultdict(list)
        self._mass: dict[ModuleKey, float] = defaultdict(float)

    def check(self, update: ModularUpdate) -> None:
        """As in `Rule`."""
        for key in update.live():
            for other in self._states[key][:1]:
                own = update.state[key]
                if {n: (a.shape, a.dtype) for n, a in own.items()} != {
                    n: (a.shape, a.dtype) for n, a in other.items()
                }:
                    raise ModuleError(f"cannot take the median of {key}: its tensors differ")

    def add(self, update: ModularUpdate) -> None:
        """As in `Rule`."""
        self.check(update)
        for key in update.live():
            self._states[key].append(update.state[key])
            self._mass[key] += update.mass[key]

    def result(self) -> ModularUpdate:
        """As in `Rule`."""
        medians = {
            key: {
                name: np.median([s[name] for s in states], axis=0).astype(np.float32)
                for name in states[0]
            }
            for key, states in self._states.items()
            if states
        }
        return ModularUpdate(medians, {k: self._mass[k] for k in medians})


@dataclass(frozen=True, slots=True)
class LoraPolicy:
    """How a tier aggregates LoRA factors.

    Attributes:
        rule: Name in `LORA_RULES`.
        scaling: Of the factors' product.
        most: Module -> highest rank that is kept; those it does not name are kept whole.
    """

    rule: str = "lora-exact"
    scaling: Scaling = Scaling.STANDARD
    most: Mapping[ModuleKey, int] = field(default_factory=dict)

    @property
    def mixed(self) -> bool:
        """Whether ranks may differ."""
        return LORA_RULES[self.rule].mixed


class Aggregation:
    """One tier's rules: LoRA factors by theirs, all other modules by the plain one.

    Attributes:
        tails: After `result`: module -> sum of the singular values that were discarded.
    """

    def __init__(self, plain: str, lora: LoraPolicy) -> None:
        self._plain: Rule = RULES[plain]()
        self._lora = LORA_RULES[lora.rule](lora.scaling, lora.most)
        self.tails: Mapping[ModuleKey, float] = {}

    def add(self, update: ModularUpdate) -> None:
        """As in `Rule`."""
        factors = {k for k, state in update.state.items() if is_lora(state)}
        low_rank, plain = update.only(factors), update.only(update.state.keys() - factors)
        self._lora.check(low_rank)
        self._plain.add(plain)
        self._lora.add(low_rank)

    def result(self) -> ModularUpdate:
        """As in `Rule`."""
        plain, low_rank = self._plain.result(), self._lora.result()
        self.tails = self._lora.tails
        return ModularUpdate({**plain.state, **low_rank.state}, {**plain.mass, **low_rank.mass})


RULES: Final[Mapping[str, type[Rule]]] = {"mean": Merger, "median": Median}
"""Rules by name. "mean": of the nodes' parameters, weighted by mass (`merge`)."""
