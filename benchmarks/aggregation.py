"""Streaming merge beside stacking all updates first: time and peak memory, as ratios.

Run: python -m benchmarks.aggregation [CLIENTS]
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np

from hffm_flower.modules import ModularUpdate, ModuleKey, ModuleKind, merge

KEYS = [ModuleKey(ModuleKind.ADAPTER, f"fusion.{i}") for i in range(4)]
SHAPE = (512, 512)


def updates(clients: int) -> Iterator[ModularUpdate]:
    """Updates as they are unpacked, one by one."""
    rng = np.random.default_rng(0)
    for _ in range(clients):
        state = {k: {"w": rng.standard_normal(SHAPE, dtype=np.float32)} for k in KEYS}
        yield ModularUpdate.of(state, float(rng.integers(1, 100)))


def stacked(clients: int) -> None:
    """What a server does that keeps every update until the last has come."""
    held = list(updates(clients))
    for key in KEYS:
        masses = np.array([u.mass[key] for u in held], dtype=np.float32)
        np.tensordot(masses, np.stack([u.state[key]["w"] for u in held]), axes=1) / masses.sum()


def streaming(clients: int) -> None:
    """What this project does."""
    merge(updates(clients))


def measure(work: Callable[[int], None], clients: int) -> tuple[float, float]:
    """CPU seconds, then peak MiB in a second pass that traces memory."""
    began = time.process_time()
    work(clients)
    seconds = time.process_time() - began
    tracemalloc.start()
    work(clients)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return seconds, peak


def main() -> None:
    """Print both and their ratios."""
    clients = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    ours, theirs = measure(streaming, clients), measure(stacked, clients)
    print(f"{clients} clients, {4 * SHAPE[0] * SHAPE[1] * 4 / 2**20:.0f} MiB each")
    print(f"streaming  {ours[0]:.2f} s CPU  {ours[1]:.0f} MiB peak")
    print(f"stacking   {theirs[0]:.2f} s CPU  {theirs[1]:.0f} MiB peak")
    print(f"ratio      {ours[0] / theirs[0]:.2f}        {ours[1] / theirs[1]:.2f}")


if __name__ == "__main__":
    main()
