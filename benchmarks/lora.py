"""Mean update of LoRA modules: error of each rule, and the exact one beside a dense SVD.

Run: python -m benchmarks.lora [SIZE] [CLIENTS] [RANK]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from hffm_flower.lora import Scaling, exact, pairs, product
from hffm_flower.modules import ModularUpdate, ModuleKey, ModuleKind, ModuleState
from strategies.lora_rules import LORA_RULES

Matrix = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
KEY: Final = ModuleKey(ModuleKind.ADAPTER, "lora")
HOW: Final = Scaling.STANDARD
MIXED: Final = (4, 8, 16, 8)
WIDTH: Final = 512
REPEATS: Final = 3
A, B = "layer.lora_A.weight", "layer.lora_B.weight"


def module(seed: int, rank: int, width: int) -> ModuleState:
    """Random factors of one square layer."""
    rng = np.random.default_rng(seed)
    return {
        A: rng.standard_normal((rank, width), dtype=np.float32),
        B: rng.standard_normal((width, rank), dtype=np.float32),
    }


def dense(state: ModuleState) -> Matrix:
    """The layer's update."""
    return product(state, HOW)["layer"]


def error(name: str, states: list[ModuleState], frozen: str = "", most: int = 0) -> float:
    """Relative Frobenius error of a rule against the mean of the products.

    Args:
        name: The rule.
        states: The nodes' modules, with masses 1, 2, ...
        frozen: Factor that is common to all and not sent.
        most: Largest rank of the aggregate; 0: no bound.
    """
    rule = LORA_RULES[name](HOW, most)
    for mass, state in enumerate(states, 1):
        sent = {n: a for n, a in state.items() if n != frozen}
        rule.add(ModularUpdate.of({KEY: sent}, float(mass)))
    common = {frozen: states[0][frozen]} if frozen else {}
    got = dense({**rule.result().state[KEY], **common})
    true = np.average([dense(s) for s in states], axis=0, weights=range(1, len(states) + 1))
    return float(np.linalg.norm(got - true) / np.linalg.norm(true))


def errors() -> None:
    """Print the error of every rule on what it is made for, and of the naive one."""
    mixed: list[ModuleState] = [module(i, r, WIDTH) for i, r in enumerate(MIXED)]
    print(
        f"relative error of the mean update, {WIDTH} x {WIDTH}, ranks {'/'.join(map(str, MIXED))}"
    )
    print(f"  lora-exact, kept whole      {error('lora-exact', mixed):.1e}")
    print(f"  lora-exact, cut to rank 16  {error('lora-exact', mixed, most=16):.3f}")
    print(f"  lora-naive                  {error('lora-naive', mixed):.3f}")
    equal: list[ModuleState] = [module(i, 8, WIDTH) for i in range(len(MIXED))]
    print("rank 8 for all, one factor common and frozen")
    for name, frozen in (("lora-ffa", A), ("lora-alternate", A), ("lora-alternate", B)):
        shared: list[ModuleState] = [{**s, frozen: equal[0][frozen]} for s in equal]
        print(f"  {name:<14} {frozen[6:12]} frozen  {error(name, shared, frozen):.1e}")


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of the fastest of `REPEATS`: threads suffer from busy neighbours."""
    taken = []
    for _ in range(REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
        print(f"  ... {taken[-1][0]:.2f} s", flush=True)
    return min(taken)


def main() -> None:
    """Print the errors, both times and their ratio."""
    given = [int(text) for text in sys.argv[1:4]]
    width, clients, rank = given + [4096, 40, 16][len(given) :]
    errors()
    total = clients * rank
    print(f"{width} x {width}, {clients} clients of rank {rank}: {total} stacked, cut to {rank}")
    states = [module(i, rank, width) for i in range(clients)]
    parts = [(1.0 / clients, *pairs(s)["layer"]) for s in states]
    print("exact rule:", flush=True)
    ours = seconds(lambda: exact(parts, HOW, rank))
    print(f"exact rule   {ours[0]:8.2f} s  {ours[1]:8.2f} s CPU", flush=True)
    stacked_A = np.concatenate([s[A] for s in states]).astype(np.float64)
    stacked_B = np.concatenate([s[B] for s in states], axis=1).astype(np.float64)
    mean = (HOW.factor(rank) / clients) * (stacked_B @ stacked_A)
    print("dense SVD of the mean product:", flush=True)
    theirs = seconds(lambda: np.linalg.svd(mean, full_matrices=False))
    print(f"dense SVD    {theirs[0]:8.2f} s  {theirs[1]:8.2f} s CPU")
    print(f"ratio        {theirs[0] / ours[0]:8.1f}    {theirs[1] / ours[1]:8.1f}")


if __name__ == "__main__":
    main()
