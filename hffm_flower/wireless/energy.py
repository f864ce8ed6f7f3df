"""What a device's doing costs in joules and, for computing, in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from hffm_flower.wireless.units import Array, not_negative, positive


@dataclass(frozen=True, slots=True)
class Activity:
    """What devices did in a while; numbers, or arrays of equal shape.

    Attributes:
        sent_s: Time on the air [s].
        received_s: Time spent receiving [s].
        cycles: Processor cycles spent on computing.
    """

    sent_s: ArrayLike = 0.0
    received_s: ArrayLike = 0.0
    cycles: ArrayLike = 0.0

    def __post_init__(self) -> None:
        for name in ("sent_s", "received_s", "cycles"):
            not_negative(name, getattr(self, name))


class EnergyModel(Protocol):
    """A part of the energy."""

    def energy_j(self, done: Activity) -> Array:
        """Energy of ``done`` [J]."""
        ...


@dataclass(frozen=True, slots=True)
class Transmit:
    """Power while sending: what is radiated over what the amplifier makes of its supply.

    Attributes:
        tx_power_w: Radiated [W].
        efficiency: Radiated over drawn power, in (0, 1].
    """

    tx_power_w: float = 0.2
    efficiency: float = 1.0

    def __post_init__(self) -> None:
        positive("tx_power_w", self.tx_power_w)
        positive("efficiency", self.efficiency)
        not_negative("1 - efficiency", 1.0 - self.efficiency)

    def energy_j(self, done: Activity) -> Array:
        """``P t / efficiency`` [J]."""
        return np.asarray(done.sent_s, dtype=np.float64) * (self.tx_power_w / self.efficiency)


@dataclass(frozen=True, slots=True)
class Receive:
    """Power of the receiver's circuits while receiving [W]."""

    rx_power_w: float = 0.1

    def __post_init__(self) -> None:
        not_negative("rx_power_w", self.rx_power_w)

    def energy_j(self, done: Activity) -> Array:
        """``P t`` [J]."""
        return np.asarray(done.received_s, dtype=np.float64) * self.rx_power_w


@dataclass(frozen=True, slots=True)
class Compute:
    """Switching energy of a processor: ``kappa f^2`` a cycle.

    Attributes:
        cpu_hz: f, clock [Hz].
        kappa: Effective switched capacitance [J s^2 / cycle].

    Source: Burd & Brodersen 1996, "Processor design for portable systems"; in this form in
    Tran et al. 2019, "Federated Learning over Wireless Networks".
    """

    cpu_hz: float = 1e9
    kappa: float = 1e-28

    def __post_init__(self) -> None:
        positive("cpu_hz", self.cpu_hz)
        not_negative("kappa", self.kappa)

    def energy_j(self, done: Activity) -> Array:
        """``kappa f^2 cycles`` [J]."""
        return np.asarray(done.cycles, dtype=np.float64) * (self.kappa * self.cpu_hz**2)


def compute_s(flops: ArrayLike, flops_per_s: ArrayLike) -> Array:
    """Time of computing [s]: operations over operations per second."""
    return np.asarray(not_negative("flops", flops) / positive("flops_per_s", flops_per_s))
