"""Rates over a radio link or the backhaul, and the time that bits take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from hffm_flower.errors import ConfigError
from hffm_flower.wireless.units import Array, not_negative, positive, w_of_dbm

THERMAL_DBM_HZ: Final = -174.0
"""Thermal noise density at room temperature [dBm/Hz]."""


def noise_w_hz(noise_figure_db: float = 0.0) -> float:
    """Noise density [W/Hz] at a receiver with that noise figure [dB] >= 0."""
    figure_db = float(not_negative("noise_figure_db", noise_figure_db))
    return float(w_of_dbm(THERMAL_DBM_HZ + figure_db))


def rate_bit_s(
    gain: ArrayLike,
    *,
    tx_power_w: ArrayLike,
    bandwidth_hz: ArrayLike,
    noise_w_hz: float,
    noise_bandwidth_hz: ArrayLike | None = None,
) -> Array:
    """Capacity of links [bit/s], vectorised: ``R = B log2(1 + P g / (N0 B))``.

    Args:
        gain: Received over sent power [1].
        tx_power_w: P [W].
        bandwidth_hz: B [Hz], of the rate and of the noise.
        noise_w_hz: N0 [W/Hz].
        noise_bandwidth_hz: Another B for the noise [Hz]: only the published mode has one.

    Raises:
        ConfigError: A power, bandwidth or noise is not above 0, or a gain is below 0.

    Source: Shannon 1949, "Communication in the Presence of Noise", theorem 2.
    """
    band_hz = positive("bandwidth_hz", bandwidth_hz)
    noise_hz = band_hz if noise_bandwidth_hz is None else positive(
        "noise_bandwidth_hz", noise_bandwidth_hz
    )  # fmt: skip
    noise_w = positive("noise_w_hz", noise_w_hz) * noise_hz
    received_w = positive("tx_power_w", tx_power_w) * not_negative("gain", gain)
    return np.asarray(band_hz * np.log1p(received_w / noise_w) / np.log(2.0))


def _split(bandwidth_hz: ArrayLike, sharers: ArrayLike) -> Array:
    count = np.asarray(sharers)
    if (count < 1).any():
        raise ConfigError(f"{count.min()} senders share a band; at least 1 does")
    return np.asarray(positive("bandwidth_hz", bandwidth_hz) / count)


def _fixed(bandwidth_hz: ArrayLike, sharers: ArrayLike) -> Array:
    return _split(bandwidth_hz, np.ones_like(np.asarray(sharers)))


SHARING: Final[Mapping[str, Callable[[ArrayLike, ArrayLike], Array]]] = {
    "fdma": _split,
    "fixed": _fixed,
}
"""Bandwidth of each sender [Hz], from the band [Hz] and how many send at once: equal parts of
it, which narrows both the rate and the noise; or all of it for each, on bands of their own."""


def latency_s(bits: ArrayLike, rate_bit_s: ArrayLike) -> Array:
    """Time on the air [s]; a link of rate 0 takes for ever."""
    amount = not_negative("bits", bits)
    rate = np.asarray(rate_bit_s, dtype=np.float64)
    if not (rate >= 0).all():
        raise ConfigError(f"rate_bit_s = {rate[~(rate >= 0)].flat[0]:g}; it must be >= 0")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(amount > 0, amount / rate, 0.0)


@dataclass(frozen=True, slots=True)
class Backhaul:
    """The wire between an edge and the cloud.

    Attributes:
        rate_bit_s: [bit/s].
        delay_s: Added to every message [s].
    """

    rate_bit_s: float = 4e6
    delay_s: float = 0.1

    def __post_init__(self) -> None:
        positive("rate_bit_s", self.rate_bit_s)
        not_negative("delay_s", self.delay_s)

    def latency_s(self, bits: ArrayLike) -> Array:
        """Time of one message [s]."""
        return self.delay_s + latency_s(bits, self.rate_bit_s)
