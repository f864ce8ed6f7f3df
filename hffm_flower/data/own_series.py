"""``series-csv``: a folder of recordings, each a CSV file with a line for each sample.

Either ``examples.csv`` has a line for each recording (``file``, ``answer``), or each
recording has a column ``answer``; a stretch of equal answers is then one recording. Every
other column is a channel, unless ``channels`` names them. Recordings are cut into
windows; channels are normalised by mean and deviation of the training windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hffm_flower.data.answers import normalised
from hffm_flower.data.dataset import Item
from hffm_flower.data.own_task import OwnKind, OwnTask, Skipped, divide, usable, vocabulary
from hffm_flower.data.tables import Table, need_columns, parse, read_table
from hffm_flower.sections import Section, Words

ANSWER: Final = "answer"


class Recording(NamedTuple):
    """Samples [time, channel] that share an answer."""

    name: str
    answer: str
    samples: NDArray[np.float64]


class SeriesFolder(Section):
    """How a folder of recordings is cut into windows.

    Attributes:
        csv: The table of the recordings.
        window: Samples of a window.
        hop: Samples from the start of a window to that of the next.
        channels: Columns, in order.
    """

    csv: str = "examples.csv"
    window: int = Field(ge=1, description="samples of a window")
    hop: int = Field(0, ge=0, description="samples from window to window; 0: a window")
    channels: Words = ()

    def cut(
        self, folder: Path, skipped: Skipped, prefix: str = ""
    ) -> Iterator[tuple[Recording, NDArray[np.float64]]]:
        """Every window [window, channel] with the recording that it is of.

        Args:
            folder: The folder.
            skipped: Gets what cannot be used.
            prefix: Comes before the names of settings in messages.

        Raises:
            ConfigError: A column is missing, or the table.
        """
        for recording in self._recordings(folder, skipped, prefix):
            starts = range(0, len(recording.samples) - self.window + 1, self.hop or self.window)
            if not starts:
                skipped.add("shorter than a window", recording.name)
            for start in starts:
                yield recording, recording.samples[start : start + self.window]

    def _recordings(self, folder: Path, skipped: Skipped, prefix: str) -> Iterator[Recording]:
        listed, key = folder / self.csv, f"{prefix}csv"
        given: list[tuple[str, str | None]]
        if listed.is_file() or "csv" in self.model_fields_set:
            table = read_table(listed, key)
            need_columns(table, ("file", ANSWER), key)
            given = [(row["file"], row[ANSWER]) for row in table.rows]
        else:
            given = [(path.name, None) for path in sorted(folder.glob("*.csv"))]
        channels: tuple[str, ...] = ()
        for name, answer in given:
            try:
                table = parse(folder / name)
            except FileNotFoundError:
                skipped.add("missing file", name)
                continue
            except (OSError, ValueError):
                skipped.add("unreadable file", name)
                continue
            own = (ANSWER,) if answer is None else ()
            if not channels:
                channels = self.channels or tuple(c for c in table.columns if c != ANSWER)
                need_columns(table, own, key)
                need_columns(table, channels, f"{prefix}channels")
            if lost := [c for c in (*own, *channels) if c not in table.columns]:
                skipped.add(f"without column {', '.join(lost)}", name)
            elif answer is None:
                yield from _stretches(table, channels)
            else:
                yield Recording(name, answer, _samples(table.rows, channels))


class SeriesCsv(SeriesFolder, OwnKind):
    """Windows of recordings, each with one answer."""

    modalities: ClassVar[tuple[str, ...]] = ("sensor",)

    def read(self, task: str, folder: Path, rng: np.random.Generator) -> OwnTask:
        """Read every recording and cut it."""
        answers, skipped = vocabulary(task), Skipped()
        windows: list[NDArray[np.float64]] = []
        labels: list[int] = []
        owners: list[str] = []
        for recording, window in self.cut(folder, skipped, f"data.{task}."):
            label = answers.get(normalised(recording.answer), -1)
            if label < 0:
                skipped.add("unknown answer", f"{recording.name} ({recording.answer!r})")
            elif not np.isfinite(window).all():
                skipped.add("not a number", recording.name)
            else:
                windows.append(window)
                labels.append(label)
                owners.append(recording.name)
        test = divide(owners, labels, self.test_share, rng)
        items = [_item(w) for w in normalise(windows, test)]
        targets = np.array(labels, np.int64)
        return usable(task, OwnTask(task, {"sensor": items}, targets, test, skipped), folder)


def normalise(
    windows: Sequence[NDArray[np.float64]], test: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Windows [N, time, channel] in deviations from the mean of those that are trained on."""
    if not len(windows):
        return np.empty((0, 0, 0), np.float32)
    values = np.stack(windows)
    trained = values if test.all() else values[~test]
    mean, deviation = trained.mean(axis=(0, 1)), trained.std(axis=(0, 1))
    scaled = (values - mean) / np.where(deviation > 0, deviation, 1.0)
    return np.asarray(scaled, dtype=np.float32)


def _stretches(table: Table, channels: tuple[str, ...]) -> Iterator[Recording]:
    at = 0
    for _, lines in groupby(table.rows, key=lambda row: normalised(row[ANSWER])):
        rows = list(lines)
        name = f"{table.path.name} from sample {at}"
        yield Recording(name, rows[0][ANSWER], _samples(rows, channels))
        at += len(rows)


def _samples(rows: list[dict[str, str]], channels: tuple[str, ...]) -> NDArray[np.float64]:
    values = [[_number(row[c]) for c in channels] for row in rows]
    return np.array(values, np.float64).reshape(-1, len(channels))


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _item(window: NDArray[np.float32]) -> Item:
    return Item(hashlib.sha256(window.tobytes()).hexdigest(), window.copy)
