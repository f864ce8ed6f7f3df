"""A task that ``hffm data prepare`` made: tables of its own, files where they were found.

What is drawn of the tables follows from the run's seed, as from a packaged data set. Files are
looked at when the tables are opened; their content is checked when one is read.
"""

from __future__ import annotations

import hashlib
import tomllib
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from hffm_flower.data.dataset import (
    Indices,
    Item,
    RawInput,
    Split,
    no_modality,
    text_item,
    too_many,
)
from hffm_flower.data.own_images import decode
from hffm_flower.data.own_task import Skipped
from hffm_flower.data.tables import parse
from hffm_flower.errors import ConfigError
from hffm_flower.seeding import generator
from hffm_flower.tasks import TASK_FILE, spec_of, task_folder

Row = dict[str, str]
SPLITS: Final[tuple[Split, ...]] = ("train", "test")


class PreparedTask:
    """Examples of a prepared task, equally many of each answer."""

    assets: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, task: str, *, train_per_answer: int, test_per_answer: int, seed: int
    ) -> None:
        spec, folder = spec_of(task), task_folder(task)
        self._task, self._inputs = task, tuple(spec.inputs)
        self._label = {answer: i for i, answer in enumerate(spec.answers)}
        table = tomllib.loads((folder / TASK_FILE).read_text(encoding="utf-8"))
        self._root = folder / Path(str(table.get("root", "."))).expanduser()
        tables = self._tables(folder, spec.content)
        self._rows: dict[Split, list[Row]] = {}
        per: dict[Split, int] = {"train": train_per_answer, "test": test_per_answer}
        for split, count in per.items():
            rng, rows = generator(seed, "data", task, split), list[Row]()
            for answer in spec.answers:
                found = [row for row in tables[split] if row["answer"] == answer]
                if len(found) < count:
                    raise too_many(task, split, count, len(found))
                rows += [found[i] for i in rng.permutation(len(found))[:count]]
            self._rows[split] = [rows[i] for i in rng.permutation(len(rows))]
        self._check_files()

    def labels(self, split: Split) -> NDArray[np.int64]:
        """Answers [N]."""
        return np.array([self._label[row["answer"]] for row in self._rows[split]], np.int64)

    def groups(self, split: Split) -> None:
        """No natural owners."""

    def targets(self, split: Split, indices: Indices) -> NDArray[np.int64]:
        """Answers [n]."""
        return self.labels(split)[np.asarray(indices, dtype=np.int64)]

    def items(self, modality: str, split: Split, indices: Indices) -> list[Item]:
        """Pictures, texts or windows."""
        if modality not in self._inputs:
            raise no_modality(self._task, modality, ", ".join(self._inputs))
        rows = [self._rows[split][i] for i in indices]
        if modality == "text":
            return [text_item(row["text"]) for row in rows]
        return [Item(row["sha256"], partial(self._read, row, modality)) for row in rows]

    def _read(self, row: Row, modality: str) -> RawInput:
        content = (self._root / row["file"]).read_bytes()
        if hashlib.sha256(content).hexdigest() != row["sha256"]:
            raise self._changed(f"{row['file']} is not what was prepared")
        if modality == "image":
            return decode(BytesIO(content))
        window: NDArray[np.float32] = np.load(BytesIO(content), allow_pickle=False)
        return window

    def _tables(self, folder: Path, content: str) -> dict[Split, list[Row]]:
        found, digest = dict[Split, list[Row]](), hashlib.sha256()
        try:
            for split in SPLITS:
                digest.update((folder / f"{split}.csv").read_bytes())
                found[split] = parse(folder / f"{split}.csv").rows
        except (OSError, ValueError) as error:
            raise self._changed(f"{folder} has no tables that can be read: {error}") from error
        if digest.hexdigest() != content:
            raise self._changed(f"the tables in {folder} are not those that {TASK_FILE} names")
        return found

    def _check_files(self) -> None:
        sizes = {row["file"]: int(row["bytes"]) for rows in self._rows.values() for row in rows}
        odd = Skipped()
        for file, size in sizes.items():
            try:
                there = (self._root / file).stat().st_size
            except OSError:
                odd.add("missing", file)
            else:
                if there != size:
                    odd.add("changed", file)
        if odd.counts:
            raise self._changed(
                f"of its {len(sizes)} files below {str(self._root)!r} there are {odd}; if they "
                f"moved, change root in {task_folder(self._task) / TASK_FILE}"
            )

    def _changed(self, why: str) -> ConfigError:
        return ConfigError(
            f"task {self._task!r}: {why}; or prepare it again (hffm data prepare --replace)",
            key="data.tasks",
        )
