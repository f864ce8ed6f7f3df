"""Rates of a million links: vectorised, against a loop over links; the ratio is the figure.

Run: ``python -m benchmarks.wireless [LINKS]``. The loop takes a part of the links only.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

import numpy as np

from hffm_flower.wireless.channel import CHANNELS
from hffm_flower.wireless.rate import noise_w_hz, rate_bit_s
from hffm_flower.wireless.units import Array

POWER_W, BAND_HZ, NOISE_W_HZ = 0.2, 1e6, noise_w_hz()
PART = 20


def looped(distances_m: list[float], fading: list[float]) -> list[float]:
    """The Rayleigh channel's rates, one link after another."""
    rates = []
    for distance_m, power in zip(distances_m, fading, strict=True):
        gain = 10**-3 * max(distance_m, 1.0) ** -3 * power
        rates.append(BAND_HZ * math.log1p(POWER_W * gain / (NOISE_W_HZ * BAND_HZ)) / math.log(2))
    return rates


def best_s(work: Callable[[], object], times: int = 3) -> float:
    """Shortest time of a few [s]."""
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return min(spent)


def main(links: int = 1_000_000) -> None:
    """Print seconds per channel, and how many times faster than the loop."""
    rng = np.random.default_rng(1)
    distance_m, fading = rng.uniform(1, 5000, links), rng.exponential(1.0, links)
    part = max(1, links // PART)
    some, faded = distance_m[:part].tolist(), fading[:part].tolist()
    loop_s = best_s(lambda: looped(some, faded)) * links / part

    def rates(gain: Array) -> Array:
        return rate_bit_s(gain, tx_power_w=POWER_W, bandwidth_hz=BAND_HZ, noise_w_hz=NOISE_W_HZ)

    model = CHANNELS["rayleigh"]()
    same = rates(model.path_gain(distance_m[:part]) * fading[:part])
    np.testing.assert_allclose(same, looped(some, faded), rtol=1e-12)
    print(f"{links} links; a python loop over given fading: {loop_s:.3f} s")
    given_s = best_s(lambda: rates(model.path_gain(distance_m) * fading))
    print(f"{'the same':14s} {given_s:6.3f} s   {loop_s / given_s:5.1f} x")
    for name, make in CHANNELS.items():
        channel = make()
        spent_s = best_s(lambda: rates(channel.draw(distance_m, rng)))  # noqa: B023
        print(f"{name:14s} {spent_s:6.3f} s   {loop_s / spent_s:5.1f} x   with its own draws")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
