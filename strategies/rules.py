"""Aggregation rules: how the updates of several nodes become one, module by module.

A rule is a class that updates are added to, one by one in the order of the nodes' index.
It says whether it is ``summable``: whether a mean of some updates, with their mass, may
stand for them, so that updates can be summed on their way through a cluster. A new rule is
a class and one line in `RULES`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import ClassVar, Final, Protocol

import numpy as np

from hffm_flower.errors import ModuleError
from hffm_flower.modules import Merger, ModularUpdate, ModuleKey, ModuleState


class Rule(Protocol):
    """Takes updates, gives their aggregate."""

    summable: ClassVar[bool]

    def add(self, update: ModularUpdate) -> None:
        """Take one node's update; checked whole before anything of it is taken.

        Raises:
            ModuleError: A module has other tensors, shapes or dtypes than before.
        """
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

    def add(self, update: ModularUpdate) -> None:
        """As in `Rule`."""
        live = [k for k in sorted(update.state) if update.mass[k] > 0.0]
        for key in live:
            for other in self._states[key][:1]:
                own = update.state[key]
                if {n: (a.shape, a.dtype) for n, a in own.items()} != {
                    n: (a.shape, a.dtype) for n, a in other.items()
                }:
                    raise ModuleError(f"cannot take the median of {key}: its tensors differ")
        for key in live:
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


RULES: Final[Mapping[str, type[Rule]]] = {"mean": Merger, "median": Median}
"""Rules by name. "mean": of the nodes' parameters, weighted by mass (`merge`)."""
