"""Examples of one task that a device reads from a folder of its own.

The vocabulary is the task's, never the folder's: an answer that the task does not have is
counted and left out, as is whatever cannot be read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hffm_flower.data.answers import normalised
from hffm_flower.data.dataset import Indices, Item, Split, no_modality
from hffm_flower.errors import ConfigError
from hffm_flower.sections import Section
from hffm_flower.tasks import TASKS

NAMED: Final = 3
"""How many of the skipped examples the log names, for each reason."""


class Skipped:
    """What of a folder is left out: all are counted by reason, the first few are named."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._named: defaultdict[str, dict[str, None]] = defaultdict(dict)

    def add(self, why: str, name: str) -> None:
        """Note that ``name`` is left out; it is named once, as it can be printed."""
        self.counts[why] += 1
        if len(self._named[why]) <= NAMED:
            self._named[why][name.encode("utf-8", "backslashreplace").decode()] = None

    def lines(self) -> list[str]:
        """One line per reason, e.g. ``2 unknown answer: a.png ('pink'), b.png ('grey')``."""
        return [
            f"{count} {why}: {', '.join([*named][:NAMED])}{', ...' if len(named) > NAMED else ''}"
            for why, count in sorted(self.counts.items())
            for named in (self._named[why],)
        ]

    def __str__(self) -> str:
        return "; ".join(self.lines()) or "nothing"


@dataclass(frozen=True, slots=True, eq=False)
class OwnTask:
    """A data set (`hffm_flower.data.dataset.Dataset`) of one device's own examples.

    Attributes:
        task: Name in `TASKS`.
        inputs: Modality -> the N inputs.
        answers: Classes int64 [N], captions int64 [N, L], or boxes float32 [N, 4].
        test: Which examples [N] are kept for testing.
        skipped: What was left out.
    """

    task: str
    inputs: Mapping[str, Sequence[Item]]
    answers: NDArray[np.int64] | NDArray[np.float32]
    test: NDArray[np.bool_]
    skipped: Skipped

    def rows(self, split: Split) -> NDArray[np.int64]:
        """All positions in ``split`` [n]: every example is this device's."""
        return np.arange(len(self._all(split)), dtype=np.int64)

    def labels(self, split: Split) -> NDArray[np.int64]:
        """Classes [n]; zeros where there are none."""
        chosen = self.answers[self._all(split)]
        return chosen.astype(np.int64) if chosen.ndim == 1 else np.zeros(len(chosen), np.int64)

    def groups(self, split: Split) -> None:
        """One owner: this device."""

    def targets(self, split: Split, indices: Indices) -> NDArray[np.int64] | NDArray[np.float32]:
        """Rows of ``answers`` [n, ...]."""
        return self.answers[self._all(split)[np.asarray(indices, dtype=np.int64)]]

    def items(self, modality: str, split: Split, indices: Indices) -> list[Item]:
        """Inputs of one modality."""
        if modality not in self.inputs:
            raise no_modality(self.task, modality, ", ".join(self.inputs))
        chosen = self._all(split)[np.asarray(indices, dtype=np.int64)]
        return [self.inputs[modality][i] for i in chosen]

    def _all(self, split: Split) -> NDArray[np.int64]:
        return np.nonzero(self.test == (split == "test"))[0]


class OwnKind(Section, ABC):
    """A kind of folder, and the settings of one; a subclass and a line in `KINDS` add one.

    Attributes:
        modalities: What it gives.
        heads: Heads of tasks without classes whose targets it reads.
        kind: Name in `hffm_flower.data.own.KINDS`.
        path: The folder; relative to the file that names it.
        test_share: Share of what was collected together that is kept for testing.
    """

    modalities: ClassVar[tuple[str, ...]]
    heads: ClassVar[tuple[str, ...]] = ()
    kind: str
    path: str
    test_share: float = Field(0.2, ge=0, lt=1)

    @abstractmethod
    def read(self, task: str, folder: Path, rng: np.random.Generator) -> OwnTask:
        """Read the examples of ``task`` in ``folder``; ``rng`` draws who is for testing.

        Raises:
            ConfigError: The folder holds nothing that can be used, or not in this form.
        """


def vocabulary(task: str) -> dict[str, int]:
    """Normalised answer -> label, as the task defines them."""
    return {normalised(a): i for i, a in enumerate(TASKS[task].answers)}


def divide(
    groups: Sequence[Hashable], labels: Sequence[int], share: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which examples [N] are for testing: ``share`` of the groups, of each label alike.

    A group (one picture, one recording) stays together, or the test would be of what was
    trained on; it counts as its first example's label.
    """
    label_of: dict[Hashable, int] = {}
    for group, label in zip(groups, labels, strict=True):
        label_of.setdefault(group, label)
    names = list(label_of)
    order = sorted(rng.permutation(len(names)).tolist(), key=lambda i: label_of[names[i]])
    marks = np.floor(np.arange(len(order) + 1) * share + 0.5)
    tested = {names[i] for i, below, at in zip(order, marks, marks[1:], strict=False) if at > below}
    return np.array([group in tested for group in groups], dtype=np.bool_)


def usable(task: str, own: OwnTask, where: Path) -> OwnTask:
    """``own``, if something can be trained on.

    Raises:
        ConfigError: There is no training example.
    """
    if not len(own.answers):
        raise ConfigError(
            f"{str(where)!r} has no example of task {task!r}; left out: {own.skipped}",
            key=f"data.{task}.path",
        )
    if own.test.all():
        raise ConfigError(
            f"no training example is left of the {len(own.answers)} in {str(where)!r}; lower it, "
            "or collect more",
            key=f"data.{task}.test-share",
        )
    return own
