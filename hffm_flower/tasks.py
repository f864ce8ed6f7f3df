"""Tasks: what goes in, which head answers, and what the answers are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task of a run.

    Attributes:
        dataset: Name in `hffm_flower.data.DATASETS`.
        head: Name in `hffm_flower.models.heads.HEADS`.
        inputs: Modality -> stream of that modality's encoder that the task reads.
        required: Modalities without which a device cannot run the task.
        optional: Modalities that help where a device has them.
        answers: Class names in label order; empty where there are none, as for a box.
        chance: Accuracy of guessing; 0 for a box.
        synthetic: Whether its inputs were made for it, by a program.
    """

    dataset: str
    head: str
    inputs: Mapping[str, str]
    required: tuple[str, ...]
    optional: tuple[str, ...]
    answers: tuple[str, ...]
    chance: float
    synthetic: bool = False


TASKS: Final[Mapping[str, TaskSpec]] = {
    "easyvqa10": TaskSpec(
        dataset="easy-vqa",
        head="classification",
        inputs={"image": "image", "text": "text"},
        required=("image",),
        optional=("text",),
        answers=(
            *("circle", "rectangle", "triangle", "red", "green"),
            *("blue", "yellow", "black", "yes", "no"),
        ),
        chance=0.1,
    ),
    "emojivqa10": TaskSpec(
        dataset="emoji-vqa",
        head="classification",
        inputs={"image": "image", "text": "text"},
        required=("image",),
        optional=("text",),
        answers=(
            *("emotion", "person", "nature", "food", "travel"),
            *("object", "symbol", "flag", "yes", "no"),
        ),
        chance=0.1,
    ),
    "watch7": TaskSpec(
        dataset="watch",
        head="classification",
        inputs={"sensor": "sensor"},
        required=("sensor",),
        optional=(),
        answers=(
            *("pendulum", "abduction", "forward elevation", "internal rotation"),
            *("external rotation", "trapezius extension", "upright row"),
        ),
        chance=1 / 7,
    ),
    "digits10": TaskSpec(
        dataset="digits",
        head="classification",
        inputs={"audio": "audio"},
        required=("audio",),
        optional=(),
        answers=(
            *("zero", "one", "two", "three", "four"),
            *("five", "six", "seven", "eight", "nine"),
        ),
        chance=0.1,
        synthetic=True,
    ),
    "easyvqa-box": TaskSpec(
        dataset="easy-vqa-box",
        head="box",
        inputs={"image": "image-grid"},
        required=("image",),
        optional=(),
        answers=(),
        chance=0.0,
    ),
}


def definition(task: str) -> dict[str, str]:
    """What all nodes must agree on of ``task``, short enough to send."""
    spec = TASKS[task]
    answers = hashlib.sha256("\x1f".join(spec.answers).encode()).hexdigest()[:16]
    return {
        "answers": f"{len(spec.answers)} (digest {answers})",
        "head": spec.head,
        "inputs": " ".join(f"{modality}={stream}" for modality, stream in spec.inputs.items()),
        "required": " ".join(spec.required),
        "optional": " ".join(spec.optional),
    }


def definitions(tasks: Iterable[str]) -> dict[str, dict[str, str]]:
    """Task -> `definition`, of those that this installation has."""
    return {task: definition(task) for task in tasks if task in TASKS}


def difference(theirs: Mapping[str, Mapping[str, str]]) -> str:
    """Where another node's `definitions` differ from those here; empty if they do not."""
    odd = []
    for task, other in theirs.items():
        if task not in TASKS:
            odd.append(f"task {task!r} is not known here")
            continue
        own = definition(task)
        odd += [
            f"its {part} of task {task!r}: {other.get(part)!r}, here {own.get(part)!r}"
            for part in sorted({*own, *other})
            if own.get(part) != other.get(part)
        ]
    return "; ".join(odd)
