"""The folder of a prepared task: it appears whole, or not at all.

``task.toml`` says what the task is (`hffm_flower.tasks.TaskSpec`) and where its files are;
``train.csv`` and ``test.csv`` have a line for each example; ``files/`` holds inputs that were not
files of their own; ``prepared.json`` reports how all that was made.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from hffm_flower.data.dataset import Split
from hffm_flower.data.own_task import Skipped
from hffm_flower.data.prepare.draw import Drawn, Wanted
from hffm_flower.data.prepare.source import SPLITS, Annotated, Taken
from hffm_flower.errors import ConfigError
from hffm_flower.tasks import TASK_FILE
from hffm_flower.version import __version__

COLUMNS: Final = ("answer", "text", "file", "bytes", "sha256")
FILES: Final = "files"
REPORT: Final = "prepared.json"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task that was prepared.

    Attributes:
        name: What a run calls it.
        folder: Where it is.
        counts: Answer -> split -> examples.
        unusable: Examples that were drawn and could not be used.
        skipped: Annotations that were left out before.
    """

    name: str
    folder: Path
    counts: Mapping[str, Mapping[Split, int]]
    unusable: Skipped
    skipped: Skipped


class Workshop:
    """Where a prepared task is made, beside its place; gone after the ``with`` block.

    Args:
        home: Folder of prepared tasks.
        name: The task's.
        replace: Whether one of that name may go.

    Raises:
        ConfigError: There is one and it may not go, or the folder cannot be written.
    """

    def __init__(self, home: Path, name: str, *, replace: bool) -> None:
        self._name, self._replace = name, replace
        self._folder = home.expanduser().resolve() / name
        if self._folder.exists() and not replace:
            raise ConfigError(
                f"{str(self._folder)!r} is there already; --replace puts the new one in its place",
                key="name",
            )

    def __enter__(self) -> Self:
        home = self._folder.parent
        try:
            home.mkdir(parents=True, exist_ok=True)
            self._at = Path(tempfile.mkdtemp(prefix=f".{self._name}.", dir=home))
            self._at.chmod(0o755)
        except OSError as error:
            raise ConfigError(
                f"{str(home)!r} cannot be written ({error.strerror}); give --out or set HFFM_DATA",
                key="out",
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._at, ignore_errors=True)

    def store(self, taken: Taken) -> Taken:
        """Put what is no file of its own into the task's folder."""
        if taken.content is None:
            return taken
        file = f"{FILES}/{taken.digest}{taken.file}"
        (self._at / FILES).mkdir(exist_ok=True)
        (self._at / file).write_bytes(taken.content)
        return replace(taken, file=file, content=None)

    def finish(
        self,
        kind: str,
        found: Annotated,
        answers: Sequence[str],
        drawn: Mapping[Split, Sequence[Drawn]],
        *,
        unusable: Skipped,
        wanted: Wanted,
    ) -> Prepared:
        """Write the tables and put the folder in its place."""
        content = hashlib.sha256()
        for split in SPLITS:
            table = _table(drawn[split])
            content.update(table)
            (self._at / f"{split}.csv").write_bytes(table)
        counts: dict[str, dict[Split, int]] = {
            a: {s: sum(d.answer == a for d in drawn[s]) for s in SPLITS} for a in answers
        }
        optional = ["text"] if found.texts else []
        spec: dict[str, object] = {
            "dataset": "prepared",
            "head": "classification",
            "required": [found.modality],
            "optional": optional,
            "answers": list(answers),
            "chance": 1 / len(answers),
            "content": content.hexdigest(),
            "source": kind,
            "root": str(found.root or "."),
        }
        streams = {modality: modality for modality in (found.modality, *optional)}
        head = f"# Made by hffm data prepare, {__version__}. Change root where its files moved.\n"
        text = head + _toml(spec) + "\n[inputs]\n" + _toml(streams)
        (self._at / TASK_FILE).write_text(text, encoding="utf-8")
        report = {
            "version": __version__,
            "kind": kind,
            "seed": wanted.seed,
            "per_answer": dict(wanted.per_answer),
            "examples": counts,
            "available": {a: {s: found.counts(s)[a] for s in SPLITS} for a in answers},
            "other_answers": {
                s: sum(n for a, n in found.counts(s).items() if a not in counts) for s in SPLITS
            },
            "unusable": dict(sorted(unusable.counts.items())),
            "left_out": dict(sorted(found.skipped.counts.items())),
            "first_of_each": [*unusable.lines(), *found.skipped.lines()],
        }
        (self._at / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        self._place()
        return Prepared(self._name, self._folder, counts, unusable, found.skipped)

    def _place(self) -> None:
        if self._replace and self._folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{self._name}.old.", dir=self._folder.parent))
            os.replace(self._folder, old)
            os.replace(self._at, self._folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(self._at, self._folder)


def _table(examples: Sequence[Drawn]) -> bytes:
    file = io.StringIO(newline="")
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(COLUMNS)
    for one in examples:
        rows.writerow([one.answer, one.text, one.input.file, one.input.size, one.input.digest])
    return file.getvalue().encode()


def _toml(values: Mapping[str, object]) -> str:
    """Words, numbers and lists of words: JSON writes them as TOML does."""
    return "".join(f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in values.items())
