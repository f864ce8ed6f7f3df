"""What happened in one edge round, as figures that add up over the tree.

A device's, an edge's and the cloud's view of round t are one type, `RoundReport`: a sum
of counts, so that tiers add theirs and no server evaluates anything itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final, Self

LOWEST_VALUE: Final = -100.0
"""Of an example, in the finer measure; so that no device can claim less."""


@dataclass(frozen=True, slots=True)
class Score:
    """Evaluation counts of a task.

    Attributes:
        correct: Right answers (what counts as right: `TaskSpec.hit`) [examples].
        total: Evaluated [examples].
        value: Sum over examples of the finer measure (`TaskSpec.measure`), each at most 1.
    """

    correct: int = 0
    total: int = 0
    value: float = 0.0

    def __add__(self, other: Score) -> Score:
        return Score(
            self.correct + other.correct, self.total + other.total, self.value + other.value
        )


Scores = dict[str, dict[str, dict[str, Score]]]
"""Model tier -> split -> task -> counts.

Splits: ``iid``, ``skewed``, and ``guess``: what the best answers that look at no input would get
on the examples of ``iid``.
"""


@dataclass(slots=True)
class RoundReport:
    """Figures of edge round ``t``.

    Attributes:
        t: Absolute edge round, from 1.
        loss_sum: Sum of the training loss over trained examples.
        trained: Examples trained on, counted once per pass [examples].
        devices: Indices of the devices whose updates were used.
        dropped: Device index -> why its answer is missing.
        void: Edges whose round published nothing, for lack of a quorum.
        scores: Evaluations made in this round.
        evaluated: Model tier -> indices of the devices that evaluated it.
        work: Device index -> operations of its local training [flop].
        traffic: Class of links -> the modules' tensors, and the rest of the messages, that
            went over it for training [byte, byte].
        kinds: Kind of module -> tensors that went over all links for training [byte].
        latency_s: Time of the round by the radio model [s].
        energy_j: Energy of the round by the radio model, all nodes together [J].
        seconds: Wall time since the run began, when known [s].
        lora_bound: LoRA module that the cloud has aggregated -> bound on the error that
            truncation to lower ranks has made, over all tiers.
    """

    t: int
    loss_sum: float = 0.0
    trained: int = 0
    devices: list[int] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    void: list[int] = field(default_factory=list)
    scores: Scores = field(default_factory=dict)
    evaluated: dict[str, list[int]] = field(default_factory=dict)
    work: dict[str, float] = field(default_factory=dict)
    traffic: dict[str, list[int]] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    latency_s: float = 0.0
    energy_j: float = 0.0
    seconds: float = 0.0
    lora_bound: dict[str, float] = field(default_factory=dict)

    def add_score(self, tier: str, split: str, task: str, score: Score) -> None:
        """Add counts to one cell."""
        cell = self.scores.setdefault(tier, {}).setdefault(split, {})
        cell[task] = cell.get(task, Score()) + score

    def add(self, other: RoundReport) -> None:
        """Add another node's figures of the same round; what it costs is priced afterwards."""
        self.loss_sum += other.loss_sum
        self.trained += other.trained
        self.devices = sorted({*self.devices, *other.devices})
        self.dropped |= other.dropped
        self.void = sorted({*self.void, *other.void})
        self.work |= other.work
        self.seconds = max(self.seconds, other.seconds)
        for tier, indices in other.evaluated.items():
            self.evaluated[tier] = sorted({*self.evaluated.get(tier, []), *indices})
        for tier, splits in other.scores.items():
            for split, tasks in splits.items():
                for task, score in tasks.items():
                    self.add_score(tier, split, task, score)

    def bytes_over(self, link: str) -> int:
        """Tensors that went over links of that class for training [byte]."""
        return self.traffic.get(link, [0])[0]

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read `to_json` back."""
        raw = json.loads(line)
        raw["scores"] = {
            tier: {
                split: {task: Score(**score) for task, score in tasks.items()}
                for split, tasks in splits.items()
            }
            for tier, splits in raw["scores"].items()
        }
        return cls(**raw)


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What a score needs to become a figure.

    Attributes:
        chance: Accuracy of guessing where it is exact, else 0; stands in for test examples
            nobody could evaluate.
        classes: Whether the task has answers to choose from (boxes have none).
        expected: Size of the test set over all devices [examples].
        hit: What counts as right.
        measure: Name of the finer measure; empty: there is none.
        measure_chance: As ``chance``, of the finer measure.
    """

    chance: float
    classes: bool
    expected: int
    hit: str = "accuracy"
    measure: str = ""
    measure_chance: float = 0.0


def accuracy(score: Score, facts: TaskFacts) -> float:
    """Accuracy over the expected test set; what is uncovered counts as chance."""
    expected = max(facts.expected, score.total)
    if expected == 0:
        return facts.chance
    return (score.correct + facts.chance * (expected - score.total)) / expected


def mean_accuracy(scores: Mapping[str, Score], tasks: Mapping[str, TaskFacts]) -> float:
    """Mean over the tasks with classes; over all tasks where none has."""
    chosen = {t: f for t, f in tasks.items() if f.classes} or tasks
    return sum(accuracy(scores.get(t, Score()), f) for t, f in chosen.items()) / len(chosen)


TIERS = ("cloud", "edge", "device")
