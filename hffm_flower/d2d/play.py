"""Playing a plan: the step that a peer takes, and all peers in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from hffm_flower.d2d.gathering import Gathering
from hffm_flower.d2d.parcel import Parcel, join
from hffm_flower.d2d.plan import PeerStep, Plan
from hffm_flower.errors import ConfigError
from hffm_flower.modules import ModularUpdate, ModuleKey, ModuleState

Parcels = tuple[Parcel, ...]
NOTHING: Final = 1e-12
"""A share up to this is not kept."""


class Fault(StrEnum):
    """What may go wrong with one device."""

    DEAD_BEFORE = "dead-before"
    """Trained, then gone before it sent anything."""
    DEAD_DURING = "dead-during"
    """Gone in its first sending step: its first receiver by index gets the message, the others
    do not; of a single receiver's message, part is sent and it is discarded."""
    DEAD_AFTER = "dead-after"
    """Gone right after its first sending step."""
    SLOW = "slow"
    """What it sends to peers comes too late; it stays live."""
    DUPLICATE = "duplicate"
    """What it sends to peers is sent and arrives twice."""
    HEAD_DEAD = "head-dead"
    """Gone after the last step, before uploading."""


def outgoing(
    held: Parcels, step: PeerStep, me: int, *, summing: bool
) -> tuple[Parcels, dict[int, Parcels]]:
    """What ``me`` keeps in ``step``, and what it sends to each receiver.

    Every receiver that the step names gets a message, if only an empty one.
    """
    out = step.sends.get(me, {})
    if not out:
        return held, {}
    if summing and held:
        held = (join(held),)
    rest = {key: 1.0 for parcel in held for key in parcel.update.state}
    messages = {}
    for receiver in sorted(out):
        shares = out[receiver]
        messages[receiver] = _worth(tuple(p.scaled(shares) for p in held))
        for key in rest.keys() & shares.keys():
            rest[key] -= shares[key]
    keeps = {key: share for key, share in rest.items() if share > NOTHING}
    return _worth(tuple(p.scaled(keeps) for p in held)), messages


def incoming(
    kept: Parcels, received: Mapping[int, Parcels], step: PeerStep, me: int, *, summing: bool
) -> Parcels:
    """What ``me`` holds after ``step``: a `Gathering` of all messages at once.

    Messages of devices that the step does not name are ignored.
    """
    gathering = Gathering(kept, step, me, summing=summing)
    for src in step.sources(me):
        gathering.add(src, received.get(src))
    return gathering.result()


def _worth(parcels: Parcels) -> Parcels:
    return tuple(p for p in parcels if p.matters())


@dataclass(frozen=True, slots=True)
class Sent:
    """One message that was put on the air, also if it did not arrive."""

    step: int
    src: int
    dst: int
    parcels: Parcels


@dataclass(frozen=True, slots=True)
class Played:
    """What a plan led to.

    Attributes:
        held: Live device -> what it holds in the end; may be nothing.
        sent: In order of step, sender and receiver; empty where somebody was told of them.
        dead: Devices that are gone.
    """

    held: Mapping[int, Parcels]
    sent: tuple[Sent, ...]
    dead: frozenset[int]


def play(
    updates: Mapping[int, ModularUpdate],
    plan: Plan,
    *,
    faults: Mapping[int, Fault] = MappingProxyType({}),
    tell: Callable[[Sent], None] | None = None,
) -> Played:
    """Play the steps of ``plan`` once, in one process.

    Devices of the plan without an update count as dead before. A device that never sends to a
    peer has no sending step in which to die, during or after.

    Args:
        updates: Device -> what it has trained.
        plan: Who sends what to whom.
        faults: Device -> what happens to it.
        tell: Told of each message as it is sent, in place of `Played.sent`, which would keep all
            of them in memory: gossip has hundreds of steps.

    Raises:
        ConfigError: A fault of a device that is neither in the plan nor has an update.
        ModuleError: Updates disagree on a module's tensors.
    """
    everyone = plan.members() | updates.keys()
    if unknown := sorted(faults.keys() - everyone):
        raise ConfigError(f"faults of unknown devices {unknown}; known: {sorted(everyone)}")
    early = {i for i in everyone if i not in updates or faults.get(i) == Fault.DEAD_BEFORE}
    held: dict[int, Parcels] = {
        i: _worth((Parcel.of(updates[i], i),)) for i in sorted(everyone - early)
    }
    sent: list[Sent] = []
    tell = tell or sent.append
    for number, step in enumerate(plan.steps):
        inbox: dict[int, dict[int, Parcels]] = {i: {} for i in held}
        kept: dict[int, Parcels] = {}
        for i in sorted(held):
            kept[i], messages = outgoing(held[i], step, i, summing=plan.summing)
            fault = faults.get(i) if messages else None
            for receiver, parcels in _on_air(messages, fault):
                tell(Sent(number, i, receiver, parcels))
                if receiver in inbox and _arrives(messages, fault):
                    inbox[receiver].setdefault(i, parcels)
            if fault in (Fault.DEAD_DURING, Fault.DEAD_AFTER):
                del kept[i]
        held = {i: incoming(kept[i], inbox[i], step, i, summing=plan.summing) for i in kept}
    live = {i: parcels for i, parcels in held.items() if faults.get(i) != Fault.HEAD_DEAD}
    return Played(live, tuple(sent), frozenset(everyone - live.keys()))


def _on_air(messages: Mapping[int, Parcels], fault: Fault | None) -> list[tuple[int, Parcels]]:
    if fault == Fault.DEAD_DURING:
        return list(messages.items())[:1]
    return [m for m in messages.items() for _ in range(2 if fault == Fault.DUPLICATE else 1)]


def _arrives(messages: Mapping[int, Parcels], fault: Fault | None) -> bool:
    return fault != Fault.SLOW and not (fault == Fault.DEAD_DURING and len(messages) == 1)


def uploads_of(played: Played, plan: Plan) -> dict[int, Parcels]:
    """What each live uploader sends to the edge: its parcels, of the modules it is to upload.

    A live device that could not hand on its mass does not upload by itself: the edge asks it.
    """
    uploaders = sorted(plan.uploads.keys() & played.held.keys())
    return {device: upload_of(played.held[device], plan, device) for device in uploaders}


def upload_of(held: Parcels, plan: Plan, me: int) -> Parcels:
    """What ``me``, an uploader, sends to the edge of what it holds in the end."""
    shares: dict[ModuleKey, float] = dict.fromkeys(plan.uploads[me], 1.0)
    return tuple(p for p in (parcel.scaled(shares) for parcel in held) if p.update.state)


def mixed(held: Parcels) -> dict[ModuleKey, ModuleState]:
    """The modules in ``held``, with which training goes on."""
    return {key: state for parcel in held for key, state in parcel.update.state.items()}
