"""The tree: which devices belong to which edge."""

from __future__ import annotations

import itertools


def clusters(devices: int, edges: int) -> tuple[tuple[int, ...], ...]:
    """Device indices of each edge: consecutive, sizes differing by one at most.

    Every device is in exactly one cluster; needs ``1 <= edges <= devices``.
    """
    bounds = [e * devices // edges for e in range(edges + 1)]
    return tuple(tuple(range(a, b)) for a, b in itertools.pairwise(bounds))
