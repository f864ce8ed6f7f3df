"""How much of the sent power arrives: path gain, shadowing and fading.

A new channel is a class with `path_gain` and `draw`, and one line in `CHANNELS`. All are
vectorised over links. Distances below a model's reference distance count as that distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import Any, ClassVar, Final, Protocol

import numpy as np
from numpy.typing import ArrayLike

from hffm_flower.errors import ConfigError, one_of
from hffm_flower.wireless.tr38901 import Uma, Umi
from hffm_flower.wireless.units import Array, not_negative, positive, ratio_of_db


class ChannelModel(Protocol):
    """A law of received power over distance: a dataclass whose fields are its constants."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def path_gain(self, distance_m: ArrayLike) -> Array:
        """Received over sent power [1], without shadowing and fading; falls with distance."""
        ...

    def draw(self, distance_m: ArrayLike, rng: np.random.Generator) -> Array:
        """Received over sent power [1] in one block: drawn anew for every call."""
        ...


@dataclass(frozen=True, slots=True)
class LogDistance:
    """Power law of distance, with log-normal shadowing.

    ``g = 10^(beta0/10) (d/d0)^(-alpha) 10^(X/10)``, X normal with zero mean [dB].

    Attributes:
        reference_gain_db: beta0, gain at the reference distance [dB].
        exponent: alpha.
        shadowing_db: Standard deviation of X [dB].
        reference_m: d0 [m].

    Source: Rappaport 2002, "Wireless Communications", 2nd ed., eq. 4.69.
    """

    reference_gain_db: float = -30.0
    exponent: float = 3.0
    shadowing_db: float = 8.0
    reference_m: float = 1.0

    def __post_init__(self) -> None:
        positive("exponent", self.exponent)
        positive("reference_m", self.reference_m)
        not_negative("shadowing_db", self.shadowing_db)

    def path_gain(self, distance_m: ArrayLike) -> Array:
        """Median gain [1]."""
        relative = np.maximum(not_negative("distance_m", distance_m) / self.reference_m, 1.0)
        return ratio_of_db(self.reference_gain_db) * relative**-self.exponent

    def draw(self, distance_m: ArrayLike, rng: np.random.Generator) -> Array:
        """Gain with shadowing [1]."""
        gain = self.path_gain(distance_m)
        return gain * ratio_of_db(rng.normal(0.0, self.shadowing_db, gain.shape))


@dataclass(frozen=True, slots=True)
class Rayleigh(LogDistance):
    """Power law of distance with Rayleigh block fading: ``|h|^2`` exponential, mean 1.

    Source: Tse & Viswanath 2005, "Fundamentals of Wireless Communication", sec. 2.4.2.
    """

    shadowing_db: float = 0.0

    def draw(self, distance_m: ArrayLike, rng: np.random.Generator) -> Array:
        """Gain with fading [1]."""
        gain = LogDistance.draw(self, distance_m, rng)
        return gain * rng.exponential(1.0, gain.shape)


@dataclass(frozen=True, slots=True)
class Rician(LogDistance):
    """Power law of distance with Rician block fading: a line of sight K times the scatter.

    ``h = sqrt(K/(K+1)) + sqrt(1/(K+1)) CN(0,1)``, so that E|h|^2 = 1; K = 0 is Rayleigh.

    Attributes:
        factor_db: K [dB].

    Source: Tse & Viswanath 2005, eq. 2.55.
    """

    shadowing_db: float = 0.0
    factor_db: float = 6.0

    def draw(self, distance_m: ArrayLike, rng: np.random.Generator) -> Array:
        """Gain with fading [1]."""
        gain = LogDistance.draw(self, distance_m, rng)
        factor = float(ratio_of_db(self.factor_db))
        scatter = np.sqrt(0.5 / (factor + 1)) * rng.standard_normal((2, *gain.shape))
        direct = np.sqrt(factor / (factor + 1))
        return np.asarray(gain * ((direct + scatter[0]) ** 2 + scatter[1] ** 2))


CHANNELS: Final[Mapping[str, Callable[[], ChannelModel]]] = {
    "rayleigh": Rayleigh,
    "rician": Rician,
    "log-distance": LogDistance,
    "uma": Uma,
    "umi": Umi,
}
"""Channel models with their default constants."""
MOST_DB: Final = 300.0


def channel_of(text: str) -> ChannelModel:
    """A name in `CHANNELS`, and constants of the model that are not to be the default ones.

    For example ``log-distance exponent=3.5 shadowing-db=4``.

    Raises:
        ConfigError: There is no such channel or constant, or a number that cannot be.
    """
    name, *pairs = text.split() or [""]
    model = CHANNELS[one_of("channel", name, CHANNELS)]()
    known = [f.name for f in fields(model)]
    given: dict[str, float] = {}
    for pair in pairs:
        key, _, number = pair.partition("=")
        field = one_of(f"constant of channel {name!r}", key.replace("-", "_"), known)
        if field in given:
            raise ConfigError(f"channel {name!r}: {key!r} is given twice")
        try:
            given[field] = float(number)
        except ValueError:
            given[field] = math.nan
        if not math.isfinite(given[field]):
            raise ConfigError(f"channel {name!r}: {pair!r} is no number")
        if field.endswith("_db") and abs(given[field]) > MOST_DB:
            raise ConfigError(f"channel {name!r}: {pair!r}; allowed: up to {MOST_DB:g} dB, +/-")
    made = replace(model, **given)
    if not 0 < (gain := float(made.path_gain(1.0))) <= 1:
        raise ConfigError(
            f"channel {text!r}: its gain at 1 m is {gain:g}; allowed: above 0, up to 1"
        )
    return made
