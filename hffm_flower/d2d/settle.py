"""The edge's side of a plan: what it accepts, and whom it asks directly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hffm_flower.d2d.parcel import Parcel
from hffm_flower.d2d.plan import Plan
from hffm_flower.modules import ModularUpdate, ModuleKey

Own = Mapping[int, Mapping[ModuleKey, float]]


@dataclass(frozen=True, slots=True)
class Settled:
    """What came of the uploads.

    Attributes:
        accepted: To be merged; nobody is in two of them with the same module.
        missing: Live device -> modules that it trained and that are in none of them.
    """

    accepted: tuple[Parcel, ...]
    missing: Mapping[int, tuple[ModuleKey, ...]]


def settle(plan: Plan, uploads: Mapping[int, Sequence[Parcel]], own: Own) -> Settled:
    """Accept uploads so that no device's training of a module counts twice.

    With the direct uploads of ``missing``, every live device counts exactly once, a dead one
    at most once. A relayed module is left out where it shares a device with what is accepted.
    A gossiped one stands for its whole group, with the mass that the group's devices report;
    it is accepted only if nothing was missing on its way and the whole group answered.

    Args:
        plan: What was played.
        uploads: Uploader -> its parcels.
        own: What every device that answered says it trained: module -> mass [examples].
    """
    counted: dict[ModuleKey, set[int]] = {}
    accepted = []
    for uploader in sorted(uploads):
        for parcel in uploads[uploader]:
            behind: dict[ModuleKey, Mapping[int, float]] = {}
            for key in sorted(parcel.update.state):
                devices = _behind(plan, parcel, key, uploader, own)
                already = counted.setdefault(key, set())
                if devices and already.isdisjoint(devices):
                    behind[key] = devices
                    already.update(devices)
            if behind:
                accepted.append(_exact(parcel, behind))
    missing = {
        device: tuple(
            key
            for key in sorted(masses)
            if masses[key] > 0.0 and device not in counted.get(key, ())
        )
        for device, masses in sorted(own.items())
    }
    return Settled(tuple(accepted), {d: keys for d, keys in missing.items() if keys})


def _behind(
    plan: Plan, parcel: Parcel, key: ModuleKey, uploader: int, own: Own
) -> Mapping[int, float]:
    """Who counts with this upload of ``key``, and with which mass; nobody: refused."""
    if key not in plan.groups:
        return parcel.behind[key]
    group = next((g for g in plan.groups[key] if uploader in g), ())
    if not parcel.intact or not own.keys() >= set(group):
        return {}
    return {d: own[d][key] for d in group if own[d].get(key, 0.0) > 0.0}


def _exact(parcel: Parcel, behind: Mapping[ModuleKey, Mapping[int, float]]) -> Parcel:
    state = {key: parcel.update.state[key] for key in behind}
    mass = {key: sum(behind[key][d] for d in sorted(behind[key])) for key in behind}
    return Parcel(ModularUpdate(state, mass), behind, parcel.intact)
