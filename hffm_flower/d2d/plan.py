"""D2D plans: who sends which share of its mass to whom, step by step.

A plan conserves mass: what a device does not send, it keeps.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hffm_flower.d2d.cluster import Cluster
from hffm_flower.errors import ConfigError
from hffm_flower.modules import ModuleKey

EDGE: Final = -1
"""The edge server, as the source of a delivery."""
SLACK: Final = 1e-9
"""How far the shares that a node sends may exceed 1 by rounding."""

Shares = Mapping[ModuleKey, float]


@dataclass(frozen=True, slots=True)
class PeerStep:
    """One synchronous step.

    Attributes:
        sends: ``sends[i][j][m]`` in (0, 1] is the share of i's mass of m that goes to j.
    """

    sends: Mapping[int, Mapping[int, Shares]]

    def sources(self, node: int) -> tuple[int, ...]:
        """Devices that send to ``node`` in this step, sorted."""
        return tuple(sorted(i for i, out in self.sends.items() if node in out))

    def check(self) -> None:
        """Refuse shares that make or lose mass.

        Raises:
            ConfigError: A share is not in (0, 1], or a device sends more than it has.
        """
        for i, out in self.sends.items():
            total: dict[ModuleKey, float] = {}
            for j, shares in sorted(out.items()):
                for key, share in shares.items():
                    if not 0.0 < share <= 1.0:
                        raise ConfigError(
                            f"device {i} sends share {share} of {key} to {j}; allowed: (0, 1]"
                        )
                    total[key] = total.get(key, 0.0) + share
            for key, share in total.items():
                if share > 1.0 + SLACK:
                    raise ConfigError(
                        f"device {i} sends {share} of its mass of {key}; at most 1 is allowed"
                    )


@dataclass(frozen=True, slots=True)
class Delivery:
    """One hop of published modules, before training.

    Attributes:
        src: A device, or `EDGE`.
        dst: A device.
        keys: What is delivered.
        step: Hops of the same step may run at once.
    """

    src: int
    dst: int
    keys: tuple[ModuleKey, ...]
    step: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What the participants of a cluster do in one edge round.

    Attributes:
        kind: Its name in `PLANS`.
        down: Deliveries, in an order in which every source has what it passes on.
        steps: Played after every segment of training.
        uploads: Device -> modules that it sends to the edge afterwards.
        groups: Gossip: module -> its holders, by connected component. Relay: empty.
        segments: Parts of local training, each followed by the steps.
        summing: False: parcels are forwarded one by one and never joined on the way.
    """

    kind: str
    down: tuple[Delivery, ...]
    steps: tuple[PeerStep, ...]
    uploads: Mapping[int, tuple[ModuleKey, ...]]
    groups: Mapping[ModuleKey, tuple[tuple[int, ...], ...]]
    segments: int = 1
    summing: bool = True

    def distinct_steps(self) -> tuple[PeerStep, ...]:
        """The steps, those in a row that are one object once."""
        return tuple(step for _, (step, *_rest) in itertools.groupby(self.steps, key=id))

    def members(self) -> frozenset[int]:
        """Every device that the plan names."""
        named = set(self.uploads)
        for hop in self.down:
            named |= {hop.src, hop.dst}
        for step in self.distinct_steps():
            for i, out in step.sends.items():
                named |= {i, *out}
        for groups in self.groups.values():
            named |= {device for group in groups for device in group}
        return frozenset(named - {EDGE})

    def check(self, cluster: Cluster) -> None:
        """Refuse a plan that this cluster cannot carry out.

        Raises:
            ConfigError: An unknown device, a link that is not there, a share outside (0, 1],
                more than a device's mass sent, or a delivery of what its source lacks.
        """
        if self.segments < 1:
            raise ConfigError(f"a plan with {self.segments} segments is not allowed; at least 1")
        if unknown := sorted(self.members() - cluster.holds.keys()):
            raise ConfigError(
                f"the plan names unknown devices {unknown}; participants: {list(cluster.devices)}"
            )
        for step in self.distinct_steps():
            step.check()
            for i, out in step.sends.items():
                for j in out:
                    _check_link(cluster, i, j)
        self._check_down(cluster)

    def _check_down(self, cluster: Cluster) -> None:
        since = {(d, key): -1 for d, keys in cluster.has.items() for key in keys}
        for hop in self.down:
            if hop.dst == EDGE or hop.step < 0:
                raise ConfigError(
                    f"a delivery to {hop.dst} at step {hop.step}; to a device, at a step >= 0"
                )
            if hop.src == EDGE:
                lacking = []
            else:
                _check_link(cluster, hop.src, hop.dst)
                lacking = [k for k in hop.keys if since.get((hop.src, k), hop.step) >= hop.step]
            if lacking:
                raise ConfigError(
                    f"device {hop.src} is to deliver {', '.join(map(str, lacking))} to {hop.dst} "
                    f"at step {hop.step}, but has it not by then"
                )
            for key in hop.keys:
                since.setdefault((hop.dst, key), hop.step)


def _check_link(cluster: Cluster, src: int, dst: int) -> None:
    if (src, dst) not in cluster.link_s:
        raise ConfigError(f"there is no link {src}->{dst} in this cluster")
