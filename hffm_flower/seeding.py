"""Independent random streams by name: every draw of a run comes from its one seed."""

from __future__ import annotations

import hashlib

import numpy as np


def stream_seed(seed: int, *names: str | int) -> int:
    """Seed in [0, 2**63) of the stream called ``names`` in the run ``seed``.

    Equal names give equal seeds on every machine; different names, unrelated ones.
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Numpy generator of the stream called ``names``, e.g. ``generator(1, "partition", task)``."""
    return np.random.default_rng(stream_seed(seed, *names))
