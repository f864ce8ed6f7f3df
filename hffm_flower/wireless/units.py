"""Numbers as people write them, turned into SI once; and checks of what may be a quantity."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hffm_flower.errors import ConfigError

Array = NDArray[np.float64]


def ratio_of_db(level_db: ArrayLike) -> Array:
    """Power ratio [1] of a level [dB]."""
    return np.asarray(np.power(10.0, np.asarray(level_db, dtype=np.float64) / 10.0))


def db_of_ratio(ratio: ArrayLike) -> Array:
    """Level [dB] of a power ratio [1] > 0."""
    return np.asarray(10.0 * np.log10(positive("ratio", ratio)))


def w_of_dbm(power_dbm: ArrayLike) -> Array:
    """Power [W] of a level over one milliwatt [dBm]."""
    return ratio_of_db(power_dbm) * 1e-3


def positive(name: str, values: ArrayLike) -> Array:
    """``values`` as float64, all finite and above 0.

    Raises:
        ConfigError: Some are not; the message names the first.
    """
    array = np.asarray(values, dtype=np.float64)
    good = (array > 0) & np.isfinite(array)
    if not good.all():
        raise ConfigError(f"{name} = {array[~good].flat[0]:g}; it must be finite and above 0")
    return array


def not_negative(name: str, values: ArrayLike) -> Array:
    """``values`` as float64, all finite and not below 0.

    Raises:
        ConfigError: Some are not; the message names the first.
    """
    array = np.asarray(values, dtype=np.float64)
    good = (array >= 0) & np.isfinite(array)
    if not good.all():
        raise ConfigError(f"{name} = {array[~good].flat[0]:g}; it must be finite and >= 0")
    return array
