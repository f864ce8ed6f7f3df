"""What a run will be: who holds and averages what, and how often."""

from __future__ import annotations

from dataclasses import dataclass

from hffm_flower.modules import ModuleKey
from hffm_flower.profile import NodeProfile
from hffm_flower.schedule import Schedule
from hffm_flower.topology import Clusters


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will be.

    Attributes:
        profiles: Every device, by index.
        keys: Modules of each device, by index.
        schedule: Scope and period of every module.
        groups: Devices that average together.
    """

    profiles: tuple[NodeProfile, ...]
    keys: tuple[tuple[ModuleKey, ...], ...]
    schedule: Schedule
    groups: Clusters

    @property
    def idle(self) -> tuple[int, ...]:
        """Devices with nothing to train."""
        return tuple(p.index for p in self.profiles if p.idle)
