"""Modules as the unit of federation: what is trained, sent and averaged.

A *module* is a named group of tensors (an adapter, a head, ...). A node holds some
modules and not others, so every mean is taken per module, over the nodes that hold it.
Devices, D2D groups, edges and the cloud all speak one type, `ModularUpdate`, which is
closed under `merge`: a hierarchy of merges equals one flat merge.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from hffm_flower.errors import ModuleError


class ModuleKind(StrEnum):
    """Role of a module in the model."""

    ENCODER = "encoder"
    PROJECTOR = "projector"
    PROMPT = "prompt"
    BACKBONE = "backbone"
    ADAPTER = "adapter"
    EXPERT = "expert"
    HEAD = "head"


@dataclass(frozen=True, slots=True, order=True)
class ModuleKey:
    """Name of a module, written ``kind/name``, e.g. ``adapter/fusion.3``."""

    kind: ModuleKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a key back from its text.

        Raises:
            ModuleError: ``text`` is not ``kind/name`` with a known kind.
        """
        kind, slash, name = text.partition("/")
        if not slash or not name or "/" in name or kind not in list(ModuleKind):
            known = ", ".join(ModuleKind)
            raise ModuleError(
                f"module key {text!r} is not of the form 'kind/name' with a kind of: {known}"
            )
        return cls(ModuleKind(kind), name)


Tensor = NDArray[np.float32]
ModuleState = Mapping[str, Tensor]
ModularState = Mapping[ModuleKey, ModuleState]


@dataclass(frozen=True, slots=True)
class ModularUpdate:
    """Module states, each with the mass behind it.

    Attributes:
        state: Mean parameters, per module; arrays of any shape, float32.
        mass: Weight behind each module's mean [examples], >= 0, for the same keys.
    """

    state: ModularState
    mass: Mapping[ModuleKey, float]

    def __post_init__(self) -> None:
        if self.state.keys() != self.mass.keys():
            odd = sorted(map(str, self.state.keys() ^ self.mass.keys()))
            raise ModuleError(f"state and mass name different modules: {', '.join(odd)}")
        bad = [f"{k}={m}" for k, m in self.mass.items() if not 0.0 <= m < float("inf")]
        if bad:
            raise ModuleError(f"mass must be finite and not negative: {', '.join(bad)}")

    @classmethod
    def of(cls, state: ModularState, mass: float) -> Self:
        """Wrap one node's ``state``, every module of it trained on ``mass`` examples."""
        return cls(state, dict.fromkeys(state, mass))

    def scaled(self, factor: float) -> ModularUpdate:
        """Multiply the mass by ``factor`` >= 0; the means stay as they are."""
        return ModularUpdate(self.state, {k: m * factor for k, m in self.mass.items()})

    def live(self) -> list[ModuleKey]:
        """Modules with mass, sorted."""
        return [k for k in sorted(self.state) if self.mass[k] > 0.0]

    def only(self, keys: Iterable[ModuleKey]) -> ModularUpdate:
        """Keep the modules named in ``keys`` that are present."""
        kept = sorted(set(keys) & self.state.keys())
        return ModularUpdate({k: self.state[k] for k in kept}, {k: self.mass[k] for k in kept})


FAR: Final = 60
"""Binary digits by which a mass may be above a module's first one before sums are scaled anew."""
LEAST: Final = -300
"""Scaling by two to this power leaves nothing of a float32."""


class Merger:
    """Running merge: memory of one model, however many updates are added.

    Sums are kept in float32 and masses in float64. Products are taken with masses in powers of
    two of the module's first one: this changes no bit of a mean, and neither masses spread thin
    by many rounds of gossip nor large ones leave float32. A module with mass 0 is never mixed
    in; it is absent from the result, so that its owner keeps the one it has.
    """

    summable: ClassVar[bool] = True

    def __init__(self) -> None:
        self._sums: dict[ModuleKey, dict[str, Tensor]] = {}
        self._mass: dict[ModuleKey, float] = {}
        self._power: dict[ModuleKey, int] = {}

    def check(self, update: ModularUpdate) -> None:
        """Refuse what `add` cannot mix in.

        Raises:
            ModuleError: A module has other tensors, shapes or dtypes than before.
        """
        for key in update.live():
            _check_fits(key, update.state[key], self._sums.get(key))

    def add(self, update: ModularUpdate) -> None:
        """Mix in ``update``; it is checked whole before anything of it is added."""
        self.check(update)
        for key in update.live():
            mass = self._weight(key, update.mass[key])
            into = self._sums.get(key)
            if into is None:
                self._sums[key] = {n: mass * a for n, a in update.state[key].items()}
            else:
                for name, array in update.state[key].items():
                    into[name] += mass * array
            self._mass[key] = self._mass.get(key, 0.0) + float(update.mass[key])

    def _weight(self, key: ModuleKey, mass: float) -> np.float32:
        """``mass`` in the module's power of two, which grows with a far larger mass."""
        own = math.frexp(mass)[1]
        power = self._power.setdefault(key, own)
        if own > power + FAR:
            for array in self._sums[key].values():
                np.ldexp(array, max(power - own, LEAST), out=array)
            power = self._power[key] = own
        return np.float32(math.ldexp(mass, -power))

    def result(self) -> ModularUpdate:
        """Means and masses of all that was added."""
        means = {
            k: {n: a / self._weight(k, self._mass[k]) for n, a in s.items()}
            for k, s in self._sums.items()
        }
        return ModularUpdate(means, dict(self._mass))


def merge(updates: Iterable[ModularUpdate]) -> ModularUpdate:
    r"""Mass-weighted mean, module by module, in the order given.

    For each module m over the updates i that hold it with mass > 0:
    :math:`\theta_m = \sum_i n_{i,m}\theta_{i,m} / \sum_i n_{i,m}`, with mass
    :math:`\sum_i n_{i,m}`. Associative and commutative up to rounding.

    Raises:
        ModuleError: Updates disagree on a module's tensors; nothing is returned.

    Source: McMahan et al. 2017, arXiv 1602.05629, Alg. 1; over a tree: Liu et al. 2020,
    arXiv 1905.06641, Alg. 1.
    """
    merger = Merger()
    for update in updates:
        merger.add(update)
    return merger.result()


def shapes(state: ModularState) -> dict[str, str]:
    """Layout of ``state``: ``kind/name/tensor`` -> ``float32[384,16]``.

    The rank of a pair of LoRA factors may differ between nodes: it is written ``r``.
    """
    return {
        f"{key}/{name}": f"{array.dtype}[{','.join(_sizes(name, array, state[key]))}]"
        for key in sorted(state)
        for name, array in sorted(state[key].items())
    }


def _sizes(name: str, array: Tensor, module: ModuleState) -> list[str]:
    sizes = [str(size) for size in array.shape]
    for own, other, place in (("lora_A", "lora_B", 0), ("lora_B", "lora_A", 1)):
        layer = name.removesuffix(f"{own}.weight")
        if layer != name and f"{layer}{other}.weight" in module and len(sizes) > place:
            sizes[place] = "r"
    return sizes


def digest(state: ModuleState) -> str:
    """Hex SHA-256 of one module's tensors: names, dtypes, shapes and bits."""
    sha = hashlib.sha256()
    for name, array in sorted(state.items()):
        sha.update(f"{name}:{array.dtype}:{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _check_fits(key: ModuleKey, state: ModuleState, sums: ModuleState | None) -> None:
    for name, array in state.items():
        if array.dtype != np.float32:
            raise ModuleError(f"{key}/{name} is {array.dtype}; only float32 is averaged")
    if sums is None:
        return
    if sums.keys() != state.keys():
        raise ModuleError(f"cannot merge {key}: tensors {sorted(state)} with {sorted(sums)}")
    for name, array in state.items():
        if array.shape != sums[name].shape:
            raise ModuleError(
                f"cannot merge {key}/{name}: shape {array.shape} with {sums[name].shape}"
            )
