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
        chance: Share of right answers by guessing, where it is exact; 0 where it is measured.
        synthetic: Whether its inputs were made for it, by a program.
        hit: What counts as a right answer, as it is shown.
        measure: Name of the finer measure; empty: there is none.
        measure_chance: The finer measure by guessing, where ``chance`` is exact.
        parts: What an answer without classes is made of: words of a caption, quantities with
            their unit.
        target: Modality that is not read but to be found: its tokens go to the head as targets.
        scale: Mean and deviation in which a quantity is learnt; all nodes need the same.
        horizon: Samples to forecast.
    """

    dataset: str
    head: str
    inputs: Mapping[str, str]
    required: tuple[str, ...]
    optional: tuple[str, ...]
    answers: tuple[str, ...]
    chance: float
    synthetic: bool = False
    hit: str = "accuracy"
    measure: str = ""
    measure_chance: float = 0.0
    parts: tuple[str, ...] = ()
    target: str = ""
    scale: tuple[float, float] = (0.0, 1.0)
    horizon: int = 0

    @property
    def fused(self) -> dict[str, str]:
        """Modality -> stream, of those that the model reads."""
        return {m: s for m, s in self.inputs.items() if m != self.target}


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
        hit="IoU > 0.5",
        measure="mean IoU",
    ),
    "emoji-retrieval": TaskSpec(
        dataset="emoji-names",
        head="retrieval",
        inputs={"image": "image", "text": "text"},
        required=("image", "text"),
        optional=(),
        answers=(),
        chance=1 / 20,
        hit="recall@1 of 20",
        measure="recall@5",
        measure_chance=5 / 20,
        target="text",
    ),
    "emoji-caption": TaskSpec(
        dataset="emoji-captions",
        head="caption",
        inputs={"image": "image"},
        required=("image",),
        optional=(),
        answers=(),
        chance=0.0,
        hit="exact match",
        measure="mean BLEU",
        parts=(
            *("artist", "astronaut", "baby", "bald", "ball", "blond", "bouncing", "cane"),
            *("climbing", "construction", "cook", "curly", "deaf", "detective", "elf", "facing"),
            *("factory", "fairy", "farmer", "feeding", "firefighter", "frowning", "golfing"),
            *("hair", "handball", "health", "in", "judge", "juggling", "kneeling", "lifting"),
            *("lotus", "mage", "man", "manual", "mechanic", "motorized", "office", "officer"),
            *("person", "pilot", "playing", "police", "polo", "position", "pregnant", "red"),
            *("right", "room", "running", "scientist", "singer", "standing", "steamy", "student"),
            *("superhero", "supervillain", "teacher", "technologist", "tuxedo", "vampire"),
            *("walking", "water", "weights", "wheelchair", "white", "with", "woman", "worker"),
            *("light", "medium-light", "medium", "medium-dark", "dark"),
        ),
    ),
    "watch-rate": TaskSpec(
        dataset="watch-rate",
        head="regression",
        inputs={"sensor": "sensor"},
        required=("sensor",),
        optional=(),
        answers=(),
        chance=0.0,
        hit="within half a deviation",
        measure="R2",
        parts=("repetitions/min",),
        scale=(35.0, 10.0),
    ),
    "watch-forecast": TaskSpec(
        dataset="watch-forecast",
        head="forecast",
        inputs={"sensor": "sensor-channels"},
        required=("sensor",),
        optional=(),
        answers=(),
        chance=0.0,
        hit="closer than persistence",
        measure="R2",
        horizon=15,
    ),
}


def definition(task: str) -> dict[str, str]:
    """What all nodes must agree on of ``task``, short enough to send."""
    spec = TASKS[task]
    return {
        "answers": _listed(spec.answers),
        "parts": _listed(spec.parts),
        "head": spec.head,
        "target": spec.target,
        "scale": f"{spec.scale}",
        "horizon": f"{spec.horizon}",
        "inputs": " ".join(f"{modality}={stream}" for modality, stream in spec.inputs.items()),
        "required": " ".join(spec.required),
        "optional": " ".join(spec.optional),
    }


def _listed(names: tuple[str, ...]) -> str:
    digest = hashlib.sha256("\x1f".join(names).encode()).hexdigest()[:16]
    return f"{len(names)} (digest {digest})"


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
