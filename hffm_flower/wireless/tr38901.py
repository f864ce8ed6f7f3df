"""Urban macro and street-canyon cells after 3GPP TR 38.901 V16.1.0, chapter 7.4.

Path loss: Table 7.4.1-1; line-of-sight probability: Table 7.4.2-1; shadowing: the last
column of Table 7.4.1-1. Distances in the tables are in metres, carriers in GHz. The tables
begin at 10 m; shorter links count as 10 m. They end at 5 km; longer links are extrapolated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from hffm_flower.errors import ConfigError
from hffm_flower.wireless.units import Array, not_negative, positive, ratio_of_db

LIGHT_M_S = 299_792_458.0
NEAREST_M = 10.0


@dataclass(frozen=True, slots=True)
class Cell(ABC):
    """What both cells share. Heights [m]: antenna of the base station, of the device."""

    TALLEST_M: ClassVar[float]

    carrier_hz: float = 3.5e9
    base_height_m: float = 25.0
    device_height_m: float = 1.5

    def __post_init__(self) -> None:
        positive("carrier_hz", self.carrier_hz)
        positive("base_height_m - 1", self.base_height_m - 1.0)
        if not 1.0 < self.device_height_m <= self.TALLEST_M:
            raise ConfigError(
                f"device_height_m = {self.device_height_m:g}; allowed: above 1, up to "
                f"{self.TALLEST_M:g}"
            )

    def path_gain(self, distance_m: ArrayLike) -> Array:
        """Gain [1], mean over line of sight and none by their probability."""
        flat_m = np.maximum(not_negative("distance_m", distance_m), NEAREST_M)
        sight = self.sight_probability(flat_m)
        los, nlos = (ratio_of_db(-loss) for loss in self._losses_db(flat_m))
        return np.asarray(sight * los + (1 - sight) * nlos)

    def draw(self, distance_m: ArrayLike, rng: np.random.Generator) -> Array:
        """Gain [1] with line of sight drawn by its probability, and shadowing."""
        flat_m = np.maximum(not_negative("distance_m", distance_m), NEAREST_M)
        seen = rng.random(flat_m.shape) < self.sight_probability(flat_m)
        los, nlos = self._losses_db(flat_m)
        sigma_los, sigma_nlos = self._shadowing_db()
        shadow = rng.standard_normal(flat_m.shape) * np.where(seen, sigma_los, sigma_nlos)
        return ratio_of_db(shadow - np.where(seen, los, nlos))

    def loss_db(self, distance_m: ArrayLike, *, sight: bool) -> Array:
        """Path loss [dB] over a horizontal distance [m], with line of sight or without."""
        flat_m = np.maximum(not_negative("distance_m", distance_m), NEAREST_M)
        return self._losses_db(flat_m)[0 if sight else 1]

    @abstractmethod
    def sight_probability(self, distance_m: ArrayLike) -> Array:
        """Probability of a line of sight."""

    @abstractmethod
    def _losses_db(self, flat_m: Array) -> tuple[Array, Array]: ...

    @abstractmethod
    def _shadowing_db(self) -> tuple[float, float]: ...

    def _slant(self, flat_m: Array) -> tuple[Array, float, float]:
        """log10 of the antennas' distance, the break point [m], and the heights' difference."""
        rise_m = self.base_height_m - self.device_height_m
        effective = (self.base_height_m - 1.0) * (self.device_height_m - 1.0)
        break_m = 4.0 * effective * self.carrier_hz / LIGHT_M_S
        return np.log10(np.hypot(flat_m, rise_m)), break_m, rise_m


def _two_slopes(
    slant: Array, flat_m: Array, *, first_db: tuple[float, float], after_db: float,
    knee: float, break_m: float, rise_m: float,
) -> Array:  # fmt: skip
    """Line of sight: slope ``first_db[1]`` up to the break point, 40 dB a decade behind it."""
    near = first_db[0] + first_db[1] * slant
    far = after_db + 40.0 * slant - knee * np.log10(break_m**2 + rise_m**2)
    return np.asarray(np.where(flat_m <= break_m, near, far))


@dataclass(frozen=True, slots=True)
class Uma(Cell):
    """Urban macro cell; devices up to 13 m high.

    Source: 3GPP TR 38.901 V16.1.0, Tables 7.4.1-1 and 7.4.2-1, rows UMa.
    """

    TALLEST_M: ClassVar[float] = 13.0

    def sight_probability(self, distance_m: ArrayLike) -> Array:
        """Probability of a line of sight, C' = 0."""
        return _sight(distance_m, 63.0)

    def _losses_db(self, flat_m: Array) -> tuple[Array, Array]:
        slant, break_m, rise_m = self._slant(flat_m)
        carrier = 20.0 * np.log10(self.carrier_hz / 1e9)
        los = _two_slopes(
            slant, flat_m, first_db=(28.0 + carrier, 22.0), after_db=28.0 + carrier, knee=9.0,
            break_m=break_m, rise_m=rise_m,
        )  # fmt: skip
        nlos = 13.54 + 39.08 * slant + carrier - 0.6 * (self.device_height_m - 1.5)
        return los, np.maximum(los, nlos)

    def _shadowing_db(self) -> tuple[float, float]:
        return 4.0, 6.0


@dataclass(frozen=True, slots=True)
class Umi(Cell):
    """Urban micro cell in a street canyon, antenna below the roofs.

    Source: 3GPP TR 38.901 V16.1.0, Tables 7.4.1-1 and 7.4.2-1, rows UMi - Street Canyon.
    """

    TALLEST_M: ClassVar[float] = 22.5
    base_height_m: float = 10.0

    def sight_probability(self, distance_m: ArrayLike) -> Array:
        """Probability of a line of sight."""
        return _sight(distance_m, 36.0)

    def _losses_db(self, flat_m: Array) -> tuple[Array, Array]:
        slant, break_m, rise_m = self._slant(flat_m)
        carrier = np.log10(self.carrier_hz / 1e9)
        los = _two_slopes(
            slant, flat_m, first_db=(32.4 + 20.0 * carrier, 21.0),
            after_db=32.4 + 20.0 * carrier, knee=9.5, break_m=break_m, rise_m=rise_m,
        )  # fmt: skip
        nlos = 22.4 + 35.3 * slant + 21.3 * carrier - 0.3 * (self.device_height_m - 1.5)
        return los, np.maximum(los, nlos)

    def _shadowing_db(self) -> tuple[float, float]:
        return 4.0, 7.82


def _sight(distance_m: ArrayLike, decay_m: float) -> Array:
    d = np.maximum(np.asarray(distance_m, dtype=np.float64), 18.0)
    return np.asarray(18.0 / d + np.exp(-d / decay_m) * (1.0 - 18.0 / d))
