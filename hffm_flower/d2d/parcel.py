"""What travels between peers: a merge, and whose training is in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from hffm_flower.modules import ModularUpdate, ModuleKey, merge


@dataclass(frozen=True, slots=True)
class Parcel:
    """A modular update together with the devices behind it.

    Attributes:
        update: Means and masses; modules of mass 0 are not in it.
        behind: Module -> device -> its mass in that mean [examples]; sums to ``update.mass``.
        intact: Nothing that the plan expected was missing on the way here.
    """

    update: ModularUpdate
    behind: Mapping[ModuleKey, Mapping[int, float]]
    intact: bool = True

    @classmethod
    def of(cls, update: ModularUpdate, device: int) -> Self:
        """One device's own update; a module of mass 0 counts as not trained and is left out."""
        trained = update.only(k for k, mass in update.mass.items() if mass > 0.0)
        return cls(trained, {k: {device: mass} for k, mass in trained.mass.items()})

    def scaled(self, shares: Mapping[ModuleKey, float]) -> Parcel:
        """Keep the modules in ``shares``, with that share of their mass; means stay."""
        kept = [k for k in sorted(self.update.state) if k in shares]
        state = {k: self.update.state[k] for k in kept}
        mass = {k: self.update.mass[k] * shares[k] for k in kept}
        behind = {k: {i: n * shares[k] for i, n in self.behind[k].items()} for k in kept}
        return Parcel(ModularUpdate(state, mass), behind, self.intact)

    def matters(self) -> bool:
        """It holds a module, or it tells that something is missing."""
        return bool(self.update.state) or not self.intact


def join(parcels: Sequence[Parcel]) -> Parcel:
    """Merge parcels in the order given; who is behind them is added up.

    One alone keeps its bits; those without modules only tell whether all are intact.

    Raises:
        ModuleError: They disagree on a module's tensors.
    """
    intact = all(p.intact for p in parcels)
    full = [p for p in parcels if p.update.state]
    if len(full) == 1:
        return dataclasses.replace(full[0], intact=intact)
    behind: dict[ModuleKey, dict[int, float]] = {}
    for parcel in full:
        for key, devices in parcel.behind.items():
            into = behind.setdefault(key, {})
            for device, part in devices.items():
                into[device] = into.get(device, 0.0) + part
    update = merge(p.update for p in full)
    return Parcel(update, {k: dict(sorted(behind[k].items())) for k in update.state}, intact)
