"""``hf-datasets``: a folder that ``save_to_disk`` of the library ``datasets`` wrote.

Columns: pictures (feature ``Image``), answers (texts, a ``ClassLabel``, or lists of texts, of
which the commonest counts) and optionally a text. Rows are read when they are needed.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from PIL import Image

from hffm_flower.data.answers import majority, normalised
from hffm_flower.data.dataset import Item, text_item
from hffm_flower.data.own_images import decode
from hffm_flower.data.own_task import OwnKind, OwnTask, Skipped, divide, usable, vocabulary
from hffm_flower.errors import ConfigError
from hffm_flower.sections import Section
from hffm_flower.tasks import spec_of

ONLY: Final = "train"
"""What the one part of a folder without splits is called."""


class HubRows:
    """Rows of one split.

    Args:
        table: The split, a ``datasets.Dataset``.
        columns: The names of the columns.
    """

    def __init__(self, table: Any, columns: HubFolder) -> None:
        pictures = importlib.import_module("datasets").Image(decode=False)
        label = table.features[columns.answer]
        given = list(table[columns.answer])
        if hasattr(label, "int2str"):
            given = [label.int2str(i) if i is not None and i >= 0 else "" for i in given]
        self.answers = [_answer(value) for value in given]
        self.texts: list[str] | None = None
        if columns.text in table.features:
            self.texts = [" ".join(str(text or "").split()) for text in table[columns.text]]
        only = table.select_columns([columns.image])
        self._pictures, self._image = only.cast_column(columns.image, pictures), columns.image

    def encoded(self, row: int) -> bytes:
        """The file of a row's picture, which was saved with it; empty where there is none."""
        cell = self._pictures[row][self._image] or {}
        return bytes(cell.get("bytes") or b"")

    def checked(self, row: int) -> tuple[str, bytes]:
        """Why the picture cannot be used, if it cannot, and its file."""
        encoded = self.encoded(row)
        if not encoded:
            return "no picture", b""
        try:
            decode(BytesIO(encoded))
        except Exception:  # a damaged picture raises whatever its damage leads to
            return "unreadable file", b""
        return "", encoded

    def picture(self, row: int) -> Image.Image:
        """A row's picture."""
        return decode(BytesIO(self.encoded(row)))


class HubFolder(Section):
    """Which columns of a folder are read.

    Attributes:
        image: Pictures.
        text: Texts; where the default is absent, there are none.
        answer: Answers.
    """

    image: str = "image"
    text: str = "question"
    answer: str = "answer"

    def open(self, folder: Path, prefix: str = "", place: str = "path") -> Mapping[str, HubRows]:
        """Split -> its rows.

        Args:
            folder: What ``save_to_disk`` wrote.
            prefix: Comes before the names of settings in messages.
            place: The setting that names the folder.

        Raises:
            ConfigError: It is no such folder, or a column is missing or of another type.
        """
        try:
            load = importlib.import_module("datasets").load_from_disk
        except ImportError as error:
            raise ConfigError(
                "kind 'hf-datasets' needs the library datasets: pip install datasets",
                key=f"{prefix}kind",
            ) from error
        try:
            found = load(str(folder))
        except Exception as error:  # whatever the damage of an Arrow file leads to
            raise ConfigError(
                f"{str(folder)!r} is no folder of save_to_disk: {error}", key=f"{prefix}{place}"
            ) from error
        tables = found if isinstance(found, dict) else {ONLY: found}
        for split, table in tables.items():
            self._check(f"{folder} ({split})", table.features, prefix)
        return {split: HubRows(table, self) for split, table in tables.items()}

    def _check(self, where: str, features: Mapping[str, Any], prefix: str) -> None:
        wanted = ["image", "answer", *(["text"] if "text" in self.model_fields_set else [])]
        for setting in wanted:
            if getattr(self, setting) not in features:
                raise ConfigError(
                    f"{where} has no column {getattr(self, setting)!r}; it has: "
                    f"{', '.join(features)}",
                    key=f"{prefix}{setting}",
                )
        kind = type(features[self.image]).__name__
        if kind != "Image":
            raise ConfigError(
                f"column {self.image!r} of {where} holds {kind}, not Image", key=f"{prefix}image"
            )


class HubKind(HubFolder, OwnKind):
    """Pictures with answers, and questions where there are some.

    Attributes:
        split: Which of the folder's splits is the device's.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image", "text")
    split: str = ONLY

    def read(self, task: str, folder: Path, rng: np.random.Generator) -> OwnTask:
        """Read the columns, and every picture once."""
        spec, answers, prefix = spec_of(task), vocabulary(task), f"data.{task}."
        if not answers:
            raise ConfigError(f"it gives no boxes, which task {task!r} needs", key=f"{prefix}kind")
        parts = self.open(folder, prefix)
        if self.split not in parts:
            raise ConfigError(
                f"{self.split!r} is no split of {str(folder)!r}; it has: {', '.join(parts)}",
                key=f"{prefix}split",
            )
        rows, skipped = parts[self.split], Skipped()
        texts = rows.texts if "text" in spec.inputs else None
        inputs: dict[str, list[Item]] = {"image": [], **({"text": []} if texts else {})}
        labels: list[int] = []
        for row, answer in enumerate(rows.answers):
            why, encoded = rows.checked(row)
            label = answers.get(answer, -1)
            if why:
                skipped.add(why, f"row {row}")
            elif label < 0:
                skipped.add("unknown answer", f"row {row} ({answer!r})")
            elif texts and not texts[row]:
                skipped.add("no text", f"row {row}")
            else:
                digest = hashlib.sha256(encoded).hexdigest()
                inputs["image"].append(Item(digest, partial(rows.picture, row)))
                labels.append(label)
                if texts:
                    inputs["text"].append(text_item(texts[row]))
        test = divide([i.digest for i in inputs["image"]], labels, self.test_share, rng)
        own = OwnTask(task, inputs, np.array(labels, np.int64), test, skipped)
        return usable(task, own, folder)


def _answer(value: object) -> str:
    """A cell as a normalised answer; of a list the commonest."""
    if isinstance(value, list):
        cells = [v.get("answer") if isinstance(v, dict) else v for v in value]
        return majority(str(cell) for cell in cells if cell is not None)
    return "" if value is None else normalised(str(value))
