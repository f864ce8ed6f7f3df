"""Server optimisers: what a merged mean does to the modules that a tier holds.

The merged mean minus the current module is a pseudo-gradient; each optimiser makes a new
module from it. Chosen per module kind by one string, first match wins::

    head=adam:0.01  adapter=momentum:1.0:0.9  *=mean
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Final, Protocol

import numpy as np

from hffm_flower.errors import ConfigError, one_of
from hffm_flower.modules import ModuleKey, ModuleKind, ModuleState, Tensor

KEY: Final = "server.optimizer"


class ServerOptimizer(Protocol):
    """Makes the next state of one module; keeps its own moments between calls."""

    def step(self, current: ModuleState, merged: ModuleState) -> dict[str, Tensor]:
        """Next state from the ``current`` one and the ``merged`` mean of the updates."""
        ...


class Mean:
    """The merged mean itself. Source: McMahan et al. 2017, arXiv 1602.05629, Alg. 1."""

    def step(self, current: ModuleState, merged: ModuleState) -> dict[str, Tensor]:
        """Take ``merged``."""
        return dict(merged)


class Momentum:
    """Server momentum (FedAvgM). Source: Hsu et al. 2019, arXiv 1909.06335, Sec. 4.3."""

    def __init__(self, rate: float = 1.0, beta: float = 0.9) -> None:
        fits = 0 < rate < math.inf and 0 <= beta < 1
        _require(fits, f"momentum:{rate}:{beta}", "LR > 0, 0 <= BETA < 1")
        self.rate, self.beta = np.float32(rate), np.float32(beta)
        self.velocity: dict[str, Tensor] = {}

    def step(self, current: ModuleState, merged: ModuleState) -> dict[str, Tensor]:
        """``v = beta v + (merged - current)``; ``current + rate v``."""
        zero = np.float32(0)
        self.velocity = {
            n: self.beta * self.velocity.get(n, zero) + (merged[n] - a) for n, a in current.items()
        }
        return {n: a + self.rate * self.velocity[n] for n, a in current.items()}


class Adam:
    """FedAdam. Source: Reddi et al. 2021, arXiv 2003.00295, Alg. 2 (no bias correction)."""

    beta1: Final = np.float32(0.9)
    beta2: Final = np.float32(0.99)
    tau: Final = np.float32(1e-3)

    def __init__(self, rate: float = 0.01) -> None:
        _require(0 < rate < math.inf, f"adam:{rate}", "LR > 0")
        self.rate = np.float32(rate)
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}

    def step(self, current: ModuleState, merged: ModuleState) -> dict[str, Tensor]:
        """``current + rate m / (sqrt(v) + tau)`` with the moments of ``merged - current``."""
        zero, one = np.float32(0), np.float32(1)
        delta = {n: merged[n] - a for n, a in current.items()}
        self.first = {
            n: self.beta1 * self.first.get(n, zero) + (one - self.beta1) * d
            for n, d in delta.items()
        }
        self.second = {
            n: self.beta2 * self.second.get(n, zero) + (one - self.beta2) * d * d
            for n, d in delta.items()
        }
        return {
            n: a + self.rate * self.first[n] / (self.second[n] ** np.float32(0.5) + self.tau)
            for n, a in current.items()
        }


OPTIMIZERS: Final[Mapping[str, Callable[..., ServerOptimizer]]] = {
    "mean": Mean,
    "momentum": Momentum,
    "adam": Adam,
}


class OptimizerPolicy:
    """One optimiser, with its own moments, for every module of a tier.

    Raises:
        ConfigError: ``policy`` names an unknown kind or optimiser, or a bad number.
    """

    def __init__(self, policy: str) -> None:
        self._items = [_parse(item) for item in policy.split()]
        self._of: dict[ModuleKey, ServerOptimizer] = {}

    def step(self, key: ModuleKey, current: ModuleState, merged: ModuleState) -> dict[str, Tensor]:
        """Next state of module ``key``."""
        return self._optimizer_of(key).step(current, merged)

    def acts_on(self, kind: ModuleKind) -> bool:
        """Whether modules of that kind get anything but their mean."""
        make = next((m for k, m in self._items if fnmatchcase(kind, k)), Mean)
        return not isinstance(make(), Mean)

    def moments(self) -> dict[str, Tensor]:
        """All moments, named ``module|moment|tensor``; inverse of `restore`."""
        return {
            f"{key}|{moment}|{name}": array
            for key, optimizer in self._of.items()
            for moment, table in vars(optimizer).items()
            if isinstance(table, dict)
            for name, array in table.items()
        }

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        """Go on from saved moments."""
        for where, array in moments.items():
            key, moment, name = where.split("|")
            getattr(self._optimizer_of(ModuleKey.parse(key)), moment)[name] = array

    def _optimizer_of(self, key: ModuleKey) -> ServerOptimizer:
        if key not in self._of:
            make = next((m for k, m in self._items if fnmatchcase(key.kind, k)), Mean)
            self._of[key] = make()
        return self._of[key]


def _parse(item: str) -> tuple[str, Callable[[], ServerOptimizer]]:
    kind, equals, text = item.partition("=")
    if not equals or not any(fnmatchcase(k, kind) for k in ModuleKind):
        raise ConfigError(
            f"{item!r} is not of the form kind=optimizer with a kind of: "
            f"{', '.join(ModuleKind)}, or a pattern of them",
            key=KEY,
        )
    name, *numbers = text.split(":")
    make = OPTIMIZERS[one_of("server optimizer", name, OPTIMIZERS, key=KEY)]
    try:
        values = [float(n) for n in numbers]
        make(*values)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{text!r} is not valid; allowed: mean, momentum[:LR[:BETA]], adam[:LR]", key=KEY
        ) from error
    return kind, lambda: make(*values)


def _require(holds: bool, value: str, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"{value!r} is not valid; allowed: {allowed}", key=KEY)
