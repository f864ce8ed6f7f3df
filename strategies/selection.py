"""Which devices take part in a round."""

from __future__ import annotations

import math
from collections.abc import Iterable

from hffm_flower.seeding import stream_seed


def participants(devices: Iterable[int], *, fraction: float, seed: int, t: int) -> tuple[int, ...]:
    """``ceil(fraction * n)`` of ``devices``, drawn for edge round ``t``, in order.

    Each device's lot depends on (seed, device, t) alone, so that a device is drawn alike
    whoever else is there.
    """
    pool = sorted(devices)
    lots = sorted(pool, key=lambda k: stream_seed(seed, "participation", k, t))
    count = math.ceil(round(fraction * len(pool), 9))  # 0.28 * 25 is 7.000000000000001
    return tuple(sorted(lots[:count]))
