"""The receiving half of a step, one sender at a time: memory of one model, however many send."""

from __future__ import annotations

import dataclasses

from hffm_flower.d2d.parcel import Parcel
from hffm_flower.d2d.plan import PeerStep
from hffm_flower.modules import Merger, ModularUpdate, ModuleKey


class Gathering:
    """What a device holds after a step: what it kept, then its senders' parcels.

    Senders are added in the order of their index. Where a sender hands on all it has (relay),
    a parcel that names a device already held for the same module is dropped: nothing is counted
    twice. A message that is missing or dropped leaves the result not intact.
    """

    def __init__(self, kept: tuple[Parcel, ...], step: PeerStep, me: int, *, summing: bool) -> None:
        self._step = step
        self._me = me
        self._summing = summing
        self._kept = kept
        self._held: list[Parcel] = []
        self._sum = _Sum()
        self._devices: dict[ModuleKey, set[int]] = {}
        self._intact = True
        for parcel in kept:
            self._hold(parcel)

    def add(self, src: int, parcels: tuple[Parcel, ...] | None) -> None:
        """Take the message of ``src``; None: it did not come."""
        if parcels is None:
            self._intact = False
            return
        whole = all(share == 1.0 for share in self._step.sends[src][self._me].values())
        for parcel in parcels:
            if whole and any(
                self._devices.get(k, set()) & b.keys() for k, b in parcel.behind.items()
            ):
                self._intact = False
            else:
                self._hold(parcel)

    def result(self) -> tuple[Parcel, ...]:
        """What the device holds now."""
        if not self._step.sources(self._me):
            return self._kept
        held = [self._sum.result()] if self._summing else self._held
        if not self._intact:
            nothing = Parcel(ModularUpdate({}, {}), {})
            held = [dataclasses.replace(p, intact=False) for p in held or [nothing]]
        return tuple(p for p in held if p.matters())

    def _hold(self, parcel: Parcel) -> None:
        for key, devices in parcel.behind.items():
            self._devices.setdefault(key, set()).update(devices)
        if self._summing:
            self._sum.add(parcel)
        else:
            self._held.append(parcel)


class _Sum:
    """`join`, one parcel at a time."""

    def __init__(self) -> None:
        self._first: Parcel | None = None
        self._count = 0
        self._merger = Merger()
        self._behind: dict[ModuleKey, dict[int, float]] = {}
        self._intact = True

    def add(self, parcel: Parcel) -> None:
        self._intact &= parcel.intact
        if not parcel.update.state:
            return  # an empty one changes no bit
        self._count += 1
        if self._count == 1:
            self._first = parcel  # as it is, for as long as it is alone
            return
        if self._first is not None:
            self._mix(self._first)
            self._first = None
        self._mix(parcel)

    def result(self) -> Parcel:
        if self._first is not None:
            return dataclasses.replace(self._first, intact=self._intact)
        update = self._merger.result()
        behind = {k: dict(sorted(self._behind[k].items())) for k in update.state}
        return Parcel(update, behind, self._intact)

    def _mix(self, parcel: Parcel) -> None:
        for key, devices in parcel.behind.items():
            into = self._behind.setdefault(key, {})
            for device, n in devices.items():
                into[device] = into.get(device, 0.0) + n
        self._merger.add(parcel.update)
