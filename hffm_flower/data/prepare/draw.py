"""Which annotations become examples: a few answers, equally many examples of each.

Everything drawn follows from the seed and the content of the annotations.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from hffm_flower.data.answers import normalised
from hffm_flower.data.dataset import Split
from hffm_flower.data.own_task import Skipped
from hffm_flower.data.prepare.source import SPLITS, Annotated, Example, Taken
from hffm_flower.errors import ConfigError
from hffm_flower.seeding import generator

MOST_NAMED: Final = 5
"""How many other answers a message names."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a prepared task shall hold.

    Attributes:
        answers: The answers, or how many of the commonest.
        per_answer: Split -> examples of each answer, at most.
        seed: Of what is drawn.
    """

    answers: int | Sequence[str] = 10
    per_answer: Mapping[Split, int] = field(default_factory=lambda: {"train": 100, "test": 50})
    seed: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.answers, int) and self.answers < 2:
            raise ConfigError(f"{self.answers} answers are no task; at least 2", key="answers")
        for split, count in self.per_answer.items():
            if count < 1:
                raise ConfigError(f"{count} is less than 1", key=f"{split}-per-answer")


@dataclass(frozen=True, slots=True)
class Drawn:
    """An example that can be used."""

    answer: str
    text: str
    input: Taken


def choose(found: Annotated, wanted: Wanted) -> tuple[str, ...]:
    """The vocabulary, in label order: as it was given, or the commonest answer first.

    Raises:
        ConfigError: An answer that was given does not occur, or too few answers have as many
            examples as wanted; the message says how many there are, and what would do.
    """
    counts = {split: found.counts(split) for split in SPLITS}
    ranked = sorted(counts["train"], key=lambda answer: (-counts["train"][answer], answer))
    if not isinstance(wanted.answers, int):
        return _given(wanted.answers, ranked)
    able = [
        a for a in ranked if all(counts[s][a] >= n for s, n in wanted.per_answer.items())
    ]  # fmt: skip
    if len(able) < wanted.answers:
        short = [a for a in ranked if a not in able][:MOST_NAMED]
        least = " and ".join(f"{n} {s}" for s, n in wanted.per_answer.items())
        told = ", ".join(f"{a!r} {counts['train'][a]} and {counts['test'][a]}" for a in short)
        would = [f"--{split}-per-answer {n}" for split in SPLITS
                 if (n := _most(counts, wanted, split=split, answers=wanted.answers))]  # fmt: skip
        raise ConfigError(
            f"{wanted.answers} answers wanted, but {len(able)} have {least} examples; the next: "
            f"{told or 'none'}; left out so far: {found.skipped}; "
            f"{' or '.join(would) or 'neither number of examples alone'} would do; or ask for "
            "fewer answers",
            key="answers",
        )
    return tuple(able[: wanted.answers])


def _most(
    counts: Mapping[Split, Counter[str]], wanted: Wanted, *, split: Split, answers: int
) -> int:
    """Examples of ``split`` that so many answers have beside what is wanted of the other; or 0."""
    others = {s: n for s, n in wanted.per_answer.items() if s != split}
    found = [
        n for a, n in counts[split].items() if all(counts[s][a] >= k for s, k in others.items())
    ]
    return sorted(found)[-answers] if len(found) >= answers else 0


def draw(
    found: Annotated, answers: Sequence[str], wanted: Wanted, *, keep: Callable[[Taken], Taken]
) -> tuple[dict[Split, list[Drawn]], Skipped]:
    """Draw examples of every answer; one that cannot be used is replaced while there are more.

    Args:
        found: All annotations.
        answers: The vocabulary.
        wanted: How many, and the seed.
        keep: Given the input of every example that is used, stores what must be stored.

    Returns:
        The examples by split, by answer in the order drawn; and what was left out.

    Raises:
        ConfigError: Of an answer no example can be used.
    """
    inputs: dict[str, Taken | str] = {}
    drawn: dict[Split, list[Drawn]] = {"train": [], "test": []}
    skipped = Skipped()
    for split, count in wanted.per_answer.items():
        by_answer: dict[str, list[Example]] = {answer: [] for answer in answers}
        for example in found.examples[split]:
            if example.answer in by_answer:
                by_answer[example.answer].append(example)
        for answer, examples in by_answer.items():
            kept = 0
            rng = generator(wanted.seed, "prepare", split, answer)
            for i in rng.permutation(len(examples)):
                if kept == count:
                    break
                example = examples[i]
                if example.ref not in inputs:
                    inputs[example.ref] = found.take(example.ref)
                taken = inputs[example.ref]
                if isinstance(taken, str):
                    skipped.add(taken, example.ref)
                    continue
                inputs[example.ref] = stored = keep(taken)
                drawn[split].append(Drawn(answer, example.text, stored))
                kept += 1
            if not kept:
                raise ConfigError(
                    f"answer {answer!r} has no {split} example that can be used; left out: "
                    f"{skipped}; before that: {found.skipped}",
                    key="root",
                )
    return drawn, skipped


def _given(answers: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    chosen = tuple(normalised(answer) for answer in answers)
    if len(set(chosen)) < max(2, len(chosen)):
        raise ConfigError(
            "at least 2 are needed, each once; given, as they are normalised: "
            f"{', '.join(map(repr, chosen)) or 'none'}",
            key="answers",
        )
    for answer in chosen:
        if answer not in known:
            near = difflib.get_close_matches(answer, known)
            raise ConfigError(
                f"answer {answer!r} does not occur among the training examples; near: "
                f"{', '.join(near) or 'none'}; the commonest: {', '.join(known[:MOST_NAMED])}",
                key="answers",
            )
    return chosen
