"""Tasks: what goes in, which head answers, and what the answers are.

`PACKAGED` tasks come with the package. Others are prepared from a user's own folders by
``hffm data prepare``, each a folder with a ``task.toml`` below `data_folder`; `TASKS` finds both.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from hffm_flower.errors import ConfigError, one_of

TASK_FILE: Final = "task.toml"
TASK_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


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
        content: Digest of the tables of a prepared task; empty for a packaged one.
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
    content: str = ""
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


PACKAGED: Final[Mapping[str, TaskSpec]] = {
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


class TaskBook(MutableMapping[str, TaskSpec]):
    """Packaged tasks, and prepared ones as they are on disk at the moment.

    What is put in is kept with the packaged tasks, which come first.
    """

    def __init__(self, packaged: Mapping[str, TaskSpec]) -> None:
        self._packaged = dict(packaged)

    def __getitem__(self, task: str) -> TaskSpec:
        if task in self._packaged:
            return self._packaged[task]
        path = task_folder(task) / TASK_FILE
        try:
            status = path.stat()
        except (OSError, ValueError):
            raise KeyError(task) from None
        if not TASK_NAME.fullmatch(task):
            raise KeyError(task)
        return _read(path, status.st_mtime_ns, status.st_size)

    def __setitem__(self, task: str, spec: TaskSpec) -> None:
        self._packaged[task] = spec

    def __delitem__(self, task: str) -> None:
        del self._packaged[task]

    def __iter__(self) -> Iterator[str]:
        prepared = sorted(p.parent.name for p in data_folder().glob(f"*/{TASK_FILE}"))
        yield from self._packaged
        yield from (t for t in prepared if TASK_NAME.fullmatch(t) and t not in self._packaged)

    def __len__(self) -> int:
        return sum(1 for _ in self)


TASKS: Final[Mapping[str, TaskSpec]] = TaskBook(PACKAGED)


def data_folder() -> Path:
    """Where prepared tasks are: ``$HFFM_DATA``, else the user's own folder.

    Raises:
        ConfigError: The variable names a relative path, which a run's processes read differently.
    """
    named = os.environ.get("HFFM_DATA", "")
    folder = Path(named or "~/.local/share/hffm-flower/tasks").expanduser()
    if not folder.is_absolute():
        raise ConfigError(f"HFFM_DATA={named!r} must be an absolute path", key="data.tasks")
    return folder


def task_folder(task: str) -> Path:
    """Folder of a prepared task."""
    return data_folder() / task


def spec_of(task: str, *, key: str = "data.tasks") -> TaskSpec:
    """The task of that name.

    Raises:
        ConfigError: There is none; the message lists those that are there.
    """
    if task not in TASKS:
        more = f"; 'hffm data prepare' adds tasks below {str(data_folder())!r} (HFFM_DATA)"
        one_of("task", task, TASKS, key=key, more=more)
    return TASKS[task]


@lru_cache(maxsize=64)
def _read(path: Path, mtime_ns: int, size: int) -> TaskSpec:
    """A prepared task; the time and the size of its file tell a new one from an old one."""
    del mtime_ns, size
    try:
        return _SPEC.validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (OSError, ValueError) as error:
        why = str(error)
    raise ConfigError(f"{str(path)!r} is no task ({why}); prepare it again", key="data.tasks")


_SPEC: Final = TypeAdapter(TaskSpec)


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
        **({"examples": f"digest {spec.content[:16]}"} if spec.content else {}),
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
