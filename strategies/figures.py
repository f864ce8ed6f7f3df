"""Figures in a device's reply, as far as they can be believed."""

from __future__ import annotations

import math

from hffm_flower.report import LOWEST_VALUE, Score
from strategies.modular import Member

SPLITS = ("iid", "skewed", "guess")


def score_of(values: object) -> Score | None:
    """Counts of one task; nothing if they are none."""
    if not isinstance(values, list) or len(values) != 3 or not all(map(math.isfinite, values)):
        return None
    return Score(int(values[0]), int(values[1]), float(values[2]))


def plausible(score: Score, member: Member, split: str, task: str) -> bool:
    """Whether a device can have counted this: within its shard, of a task that it runs."""
    tests = member.tests
    known = tests is None or split not in SPLITS or task in tests or split == "skewed"
    shard = tests is not None and split != "skewed" and task in tests
    most = tests[task] if tests is not None and shard else score.total
    bounded = 0 <= score.correct <= score.total <= most
    least = LOWEST_VALUE * score.total
    return known and bounded and least <= score.value <= score.total + 1e-3 and split in SPLITS


def scalar(value: object) -> float:
    """A finite number; 0 for anything else."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
