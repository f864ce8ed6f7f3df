"""Folders of no particular data set: pictures or recordings with a CSV file, or saved tables.

Columns are those of a device's own data (docs/own-data.md). A column ``split`` says ``train`` or
``test``; without it a share of the pictures or recordings is for testing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hffm_flower.data.answers import normalised
from hffm_flower.data.dataset import Split
from hffm_flower.data.own_hub import HubFolder, HubRows
from hffm_flower.data.own_series import SeriesFolder, normalise
from hffm_flower.data.own_task import Skipped
from hffm_flower.data.prepare.source import (
    SPLITS,
    Annotated,
    Example,
    Source,
    Taken,
    one_line,
    share_out,
)
from hffm_flower.data.prepare.vqa import taken
from hffm_flower.data.tables import need_columns, read_table
from hffm_flower.errors import ConfigError

SPLIT: Final = "split"
HELD_OUT: Final = ("test", "validation", "val", "dev")
"""Splits that can be tested on, the best first."""


class ImageCsvSource(Source):
    """``examples.csv`` (``image``, ``answer``, optionally ``text`` and ``split``), and pictures."""

    layout: ClassVar[str] = "examples.csv, or what --csv names, and the pictures that it names"
    csv: str = "examples.csv"
    test_share: float = Field(0.2, gt=0, lt=1)

    def read(self, root: Path, rng: np.random.Generator) -> Annotated:
        """Read the CSV file."""
        table = read_table(self.find(root, self.csv), "csv")
        need_columns(table, ("image", "answer"), "csv")
        texts, skipped = "text" in table.columns, Skipped()
        examples: list[Example] = []
        splits: list[str] = []
        for row in table.rows:
            answer, text = normalised(row["answer"]), one_line(row.get("text", ""))
            if not answer:
                skipped.add("no answer", row["image"])
            elif texts and not text:
                skipped.add("no text", row["image"])
            else:
                examples.append(Example(answer, row["image"], text))
                splits.append(row.get(SPLIT, ""))
        if SPLIT in table.columns:
            parts = as_told(examples, splits, str(table.path))
        else:
            parts = share_out(examples, [e.ref for e in examples], self.test_share, rng)
        return Annotated(
            parts, "image", texts=texts, skipped=skipped, root=root, take=partial(taken, root)
        )


class SeriesCsvSource(SeriesFolder, Source):
    """Recordings, each a CSV file, cut into windows that are normalised as those of training."""

    layout: ClassVar[str] = (
        "CSV files with a column for each channel, and examples.csv (file, answer) or a column "
        "answer in each"
    )
    test_share: float = Field(0.2, gt=0, lt=1)

    def read(self, root: Path, rng: np.random.Generator) -> Annotated:
        """Read and cut every recording."""
        if "csv" in self.model_fields_set:
            self.find(root, self.csv)
        skipped = Skipped()
        examples: list[Example] = []
        windows: list[NDArray[np.float64]] = []
        owners: list[str] = []
        for recording, window in self.cut(root, skipped):
            answer = normalised(recording.answer)
            if not answer:
                skipped.add("no answer", recording.name)
            elif not np.isfinite(window).all():
                skipped.add("not a number", recording.name)
            else:
                examples.append(Example(answer, str(len(windows))))
                windows.append(window)
                owners.append(recording.name)
        parts = share_out(examples, owners, self.test_share, rng)
        tested = {int(e.ref) for e in parts["test"]}
        values = normalise(windows, np.array([i in tested for i in range(len(windows))]))
        return Annotated(
            parts, "sensor", texts=False, skipped=skipped, root=None, take=partial(_window, values)
        )


class HubSource(HubFolder, Source):
    """What ``save_to_disk`` wrote: the split ``train``, and the first that one can test on."""

    layout: ClassVar[str] = "a folder that save_to_disk of the library datasets wrote"
    test_share: float = Field(0.2, gt=0, lt=1)

    def read(self, root: Path, rng: np.random.Generator) -> Annotated:
        """Read the columns of answers and texts."""
        parts, skipped = self.open(root, place="root"), Skipped()
        if "train" not in parts:
            raise ConfigError(
                f"{str(root)!r} has no split 'train'; it has: {', '.join(parts)}", key="root"
            )
        held = next((parts[name] for name in HELD_OUT if name in parts), None)
        rows: dict[Split, HubRows] = {"train": parts["train"], **({"test": held} if held else {})}
        texts = all(part.texts is not None for part in rows.values())
        found = {
            split: _examples(split, part, skipped, texts=texts) for split, part in rows.items()
        }
        if held is None:
            train = found["train"]
            digests = [_digest(parts["train"].encoded(int(e.ref.split()[1]))) for e in train]
            found = share_out(train, digests, self.test_share, rng)
        return Annotated(
            found, "image", texts=texts, skipped=skipped, root=None, take=partial(_row, rows)
        )


def as_told(
    examples: Sequence[Example], splits: Sequence[str], where: str
) -> dict[Split, list[Example]]:
    """Examples by the split that their line names.

    Raises:
        ConfigError: Some name another.
    """
    parts: dict[Split, list[Example]] = {"train": [], "test": []}
    odd = Skipped()
    for example, name in zip(examples, splits, strict=True):
        split = next((s for s in SPLITS if s == name), None)
        if split is None:
            odd.add(f"split {name!r}", example.ref)
        else:
            parts[split].append(example)
    if odd.counts:
        raise ConfigError(f"{where!r} has {odd}; a split is train or test", key="csv")
    return parts


def _examples(split: Split, rows: HubRows, skipped: Skipped, *, texts: bool) -> list[Example]:
    kept = []
    for row, answer in enumerate(rows.answers):
        text = rows.texts[row] if texts and rows.texts is not None else ""
        if not answer:
            skipped.add("no answer", f"{split} {row}")
        elif texts and not text:
            skipped.add("no text", f"{split} {row}")
        else:
            kept.append(Example(answer, f"{'train' if split == 'train' else 'test'} {row}", text))
    return kept


def _row(rows: dict[Split, HubRows], ref: str) -> Taken | str:
    split, _, row = ref.partition(" ")
    part = rows["train" if split == "train" else "test"]
    why, encoded = part.checked(int(row))
    return why or Taken("", _digest(encoded), len(encoded), encoded)


def _window(values: NDArray[np.float32], ref: str) -> Taken:
    file = BytesIO()
    np.save(file, values[int(ref)], allow_pickle=False)
    content = file.getvalue()
    return Taken(".npy", _digest(content), len(content), content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
