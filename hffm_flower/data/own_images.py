"""``image-csv``: a folder of pictures and a CSV file with a line for each example.

Columns: ``image`` (a file in the folder), ``answer``, and optionally ``text`` (a
question). Where the task asks for a box: ``left``, ``top``, ``width``, ``height`` in
pixels of the picture; where it asks for a caption: ``caption``, in the task's words. Other
columns are not read, so that one CSV file can serve several tasks; a picture may stand in
many lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hffm_flower.data.answers import normalised
from hffm_flower.data.captions import LONGEST, encode, writable
from hffm_flower.data.dataset import Item, text_item
from hffm_flower.data.own_task import OwnKind, OwnTask, Skipped, divide, usable, vocabulary
from hffm_flower.data.tables import need_columns, read_table
from hffm_flower.tasks import TASKS, TaskSpec

BOX: Final = ("left", "top", "width", "height")
SLACK_PX: Final = 1.0  # annotation tools round a box's side up


class Picture(NamedTuple):
    """A picture that can be decoded."""

    item: Item
    width_px: int
    height_px: int


class ImageCsv(OwnKind):
    """Pictures with questions and answers, boxes, or captions."""

    modalities: ClassVar[tuple[str, ...]] = ("image", "text")
    heads: ClassVar[tuple[str, ...]] = ("box", "caption")
    csv: str = "examples.csv"

    def read(self, task: str, folder: Path, rng: np.random.Generator) -> OwnTask:
        """Read the CSV file, and every picture once."""
        spec, key = TASKS[task], f"data.{task}.csv"
        table = read_table(folder / self.csv, key)
        need_columns(table, ("image", *_columns(spec)), key)
        texts = "text" in spec.inputs and "text" in table.columns
        skipped = Skipped()
        pictures: dict[str, Picture | str] = {}
        names: list[str] = []
        questions: list[Item] = []
        targets: list[Target] = []
        for row in table.rows:
            name = row["image"]
            if name not in pictures:
                pictures[name] = picture(folder / name)
            found = pictures[name]
            if isinstance(found, str):
                skipped.add(found, name)
                continue
            target = _target(task, row, found)
            if isinstance(target, Refused):
                told = "" if target.what is None else f" ({target.what!r})"
                skipped.add(target.why, f"{name}{told}")
            elif texts and not row["text"]:
                skipped.add("no text", name)
            else:
                names.append(name)
                targets.append(target)
                questions += [text_item(row["text"])] if texts else []
        inputs = {"image": [p.item for n in names if not isinstance(p := pictures[n], str)]}
        if texts:
            inputs["text"] = questions
        labels = [t if isinstance(t, int) else 0 for t in targets]
        test = divide(names, labels, self.test_share, rng)
        answers = _array(spec, targets)
        return usable(task, OwnTask(task, inputs, answers, test, skipped), folder)


Target = int | tuple[float, ...] | tuple[int, ...]
"""A class, a box, or a caption."""


class Refused(NamedTuple):
    """Why a line has no target, and what stands there."""

    why: str
    what: str | None = None


def _columns(spec: TaskSpec) -> tuple[str, ...]:
    """Columns that hold the target."""
    return ("answer",) if spec.answers else {"caption": ("caption",)}.get(spec.head, BOX)


def _target(task: str, row: Mapping[str, str], found: Picture) -> Target | Refused:
    """What the task asks for, of one line."""
    spec = TASKS[task]
    if spec.answers:
        label = vocabulary(task).get(normalised(row["answer"]))
        return Refused("unknown answer", row["answer"]) if label is None else label
    if spec.head == "caption":
        if not writable(row["caption"], spec.parts):
            return Refused("caption of other words", row["caption"])
        return tuple(encode([row["caption"]], spec.parts)[0].tolist())
    return relative_box([row[c] for c in BOX], found) or Refused("no box in the picture")


def _array(spec: TaskSpec, targets: list[Target]) -> NDArray[np.int64] | NDArray[np.float32]:
    if spec.answers:
        return np.array(targets, np.int64)
    if spec.head == "caption":
        return np.array(targets, np.int64).reshape(-1, LONGEST)
    return np.array(targets, np.float32).reshape(-1, 4)


def picture(path: Path) -> Picture | str:
    """The picture in a file, decoded once to see that it can be; or why there is none."""
    try:
        if not path.is_file():
            return "missing file"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        width, height = decode(path).size
    except Exception:  # damage raises whatever it leads to, and so do names too long for a file
        return "unreadable file"
    return Picture(Item(digest, partial(decode, path)), width, height)


def decode(file: Path | BytesIO) -> Image.Image:
    """The picture, upright, in RGB."""
    with Image.open(file) as raw:
        return ImageOps.exif_transpose(raw).convert("RGB")


def relative_box(cells: list[str], within: Picture) -> tuple[float, ...]:
    """Centre x, centre y, width, height, each in 0..1; empty if it is no box in the picture."""
    try:
        left, top, width, height = map(float, cells)
    except ValueError:
        return ()
    right, bottom = left + width, top + height
    inside = (
        left >= -SLACK_PX
        and top >= -SLACK_PX
        and right <= within.width_px + SLACK_PX
        and bottom <= within.height_px + SLACK_PX
    )
    if not (inside and width > 0 and height > 0):
        return ()
    left, right = max(left, 0) / within.width_px, min(right / within.width_px, 1)
    top, bottom = max(top, 0) / within.height_px, min(bottom / within.height_px, 1)
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
