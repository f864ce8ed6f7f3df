"""What wrong weights in the mean, and a reading in mid-cycle, do to accuracy, over seeds.

The published case study adds running prefix sums where it means a mean over its users (see
docs/published-vs-corrected.md), so that of a cluster's four users the first weighs most. Here
the same federation is trained with the masses as they are and with those weights, on the
in-process grid of the tests.

Run: ``python -m benchmarks.weights [SEEDS]``; about two minutes a seed on an idle core.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import torch
from flwr.app import Context, Message, MetricRecord

from clients.resident import all_profiles
from hffm_flower.config import RunConfig
from hffm_flower.records import MASS
from hffm_flower.result import means, task_facts
from tests.support.played import RecordingApp, play

HEADS = (4, 3, 2, 1)
"""Weights of a cluster's four users, in order: of a head, which each of them trains once,"""
SHARED = (8 + 7, 6 + 5, 4 + 3, 2 + 1)
"""and of what both tasks train, so that each user is two of eight events."""
BASE: dict[str, object] = {
    "rounds": 16,
    "tree.devices": 12,
    "tree.edges": 3,
    "tree.period": 8,
    "data.train-per-answer": 40,
    "data.test-per-answer": 30,
    "model.backbone": "small",
    "train.local-epochs": 1,
}


class PrefixSums(RecordingApp):
    """Devices whose masses are multiplied by the weights of running prefix sums."""

    def answer(
        self, message: Message, context: Context, *, index: int, kind: str, t: int
    ) -> Message:
        """The real answer, with other masses."""
        reply = super().answer(message, context, index=index, kind=kind, t=t)
        self.calls.clear()  # a long run's messages need not be kept
        if reply.has_content() and MASS in reply.content.metric_records:
            weights = {
                name: HEADS if name.startswith("head/") else SHARED
                for name in reply.content.metric_records[MASS]
            }
            reply.content[MASS] = MetricRecord(
                {
                    name: float(mass) * weights[name][index % 4] / weights[name][0]
                    for name, mass in reply.content.metric_records[MASS].items()
                    if isinstance(mass, int | float)
                }
            )
        return reply


class Plain(RecordingApp):
    """Devices as they are; nothing is recorded."""

    def answer(
        self, message: Message, context: Context, *, index: int, kind: str, t: int
    ) -> Message:
        """The real answer."""
        self.calls.clear()
        return super().answer(message, context, index=index, kind=kind, t=t)


def figures(config: RunConfig, app: RecordingApp) -> dict[str, float]:
    """Train; mean IID accuracies of the last cloud cycle."""
    with tempfile.TemporaryDirectory() as folder:
        run = play(config, Path(folder) / "run", app=app)
        if run.error is not None:
            raise run.error
        summary = run.result["summary"]
        tasks = task_facts(config.data.tasks, all_profiles(config))
        middle = means(run.rounds[-1 - config.tree.period // 2], tasks)
    return {
        "after the cloud": summary["mean_global"],
        "mean of the cycle": summary["mean_global_cycle"],
        "in mid-cycle": middle["edge"],
        "own label mix": summary["mean_personal"],
    }


def main() -> None:
    """Print a line per seed and way, then means and spreads."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(1, seeds + 1):
        for alpha in (0.5, 0.1):
            for name, kind in (("masses", Plain), ("prefix sums", PrefixSums)):
                config = RunConfig.load(base={**BASE, "seed": seed, "data.alpha": alpha})
                way = f"alpha {alpha}, {name}"
                found.setdefault(way, []).append(figures(config, kind()))
                told = ", ".join(f"{k} {v:.3f}" for k, v in found[way][-1].items())
                print(f"seed {seed}, {way}: {told}", flush=True)
    for way, rows in found.items():
        for column in rows[0]:
            values = [row[column] for row in rows]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"{way:>26} {column:>18} {statistics.mean(values):.3f} +- {spread:.3f}")


if __name__ == "__main__":
    main()
