"""Easy-VQA: questions about one coloured shape on a 64 x 64 picture, and where the shape is.

Source: V. Zhou, easy-VQA 1.0 (MIT); 4000 + 1000 pictures, 48,248 questions. Boxes are read
off the pictures: each shows one shape on a plain ground.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hffm_flower.assets import asset_root
from hffm_flower.data.dataset import Indices, Item, Split, no_modality, text_item, too_many
from hffm_flower.seeding import generator
from hffm_flower.tasks import TASKS

PICTURES: Final[Mapping[Split, int]] = {"train": 4000, "test": 1000}
BOXES_PER_ANSWER: Final = 10  # so that a box task is as large as a ten-answer one
CONTRAST: Final = 30  # summed over RGB: ground and shape differ by more, noise by less


class EasyVqa:
    """Ten-answer subset: equally many questions per answer, drawn by seed."""

    assets: ClassVar[tuple[str, ...]] = ("easy-vqa",)

    def __init__(
        self, task: str, *, train_per_answer: int, test_per_answer: int, seed: int
    ) -> None:
        root = asset_root("easy-vqa")
        answers = TASKS[task].answers
        counts: dict[Split, int] = {"train": train_per_answer, "test": test_per_answer}
        self._task = task
        self._pictures = {split: root / "data" / split / "images" for split in counts}
        self._rows: dict[Split, list[tuple[str, int, int]]] = {}
        for split, count in counts.items():
            text = (root / "data" / split / "questions.json").read_text("utf-8")
            by_answer: dict[str, list[tuple[str, int, int]]] = {a: [] for a in answers}
            for question, answer, picture in json.loads(text):
                if answer in by_answer:
                    by_answer[answer].append((question, answers.index(answer), picture))
            rng = generator(seed, "data", task, split)
            rows: list[tuple[str, int, int]] = []
            for found in by_answer.values():
                if len(found) < count:
                    raise too_many(task, split, count, len(found))
                rows += [found[i] for i in rng.permutation(len(found))[:count]]
            self._rows[split] = [rows[i] for i in rng.permutation(len(rows))]

    def labels(self, split: Split) -> NDArray[np.int64]:
        """Answers [N]."""
        return np.array([row[1] for row in self._rows[split]], dtype=np.int64)

    def groups(self, split: Split) -> None:
        """No natural owners."""

    def targets(self, split: Split, indices: Indices) -> NDArray[np.int64]:
        """Answers [n]."""
        return np.array([self._rows[split][i][1] for i in indices], dtype=np.int64)

    def items(self, modality: str, split: Split, indices: Indices) -> list[Item]:
        """Pictures or questions."""
        rows = [self._rows[split][i] for i in indices]
        if modality == "image":
            return [_picture_item(self._pictures[split] / f"{row[2]}.png") for row in rows]
        if modality == "text":
            return [text_item(row[0]) for row in rows]
        raise no_modality(self._task, modality, "image, text")


class EasyVqaBox:
    """Pictures with the box of their one shape."""

    assets: ClassVar[tuple[str, ...]] = ("easy-vqa",)

    def __init__(
        self, task: str, *, train_per_answer: int, test_per_answer: int, seed: int
    ) -> None:
        root = asset_root("easy-vqa")
        counts: dict[Split, int] = {"train": train_per_answer, "test": test_per_answer}
        self._task = task
        self._paths: dict[Split, list[Path]] = {}
        for split, per_answer in counts.items():
            count = per_answer * BOXES_PER_ANSWER
            if count > PICTURES[split]:
                raise too_many(task, split, count, PICTURES[split])
            drawn = generator(seed, "data", task, split).permutation(PICTURES[split])[:count]
            self._paths[split] = [root / "data" / split / "images" / f"{i}.png" for i in drawn]

    def labels(self, split: Split) -> NDArray[np.int64]:
        """Zeros [N]: there are no classes."""
        return np.zeros(len(self._paths[split]), dtype=np.int64)

    def groups(self, split: Split) -> None:
        """No natural owners."""

    def targets(self, split: Split, indices: Indices) -> NDArray[np.float32]:
        """Boxes [n, 4]: centre x, centre y, width, height, each in 0..1."""
        boxes = [_box(self._paths[split][i]) for i in indices]
        return np.array(boxes, dtype=np.float32).reshape(-1, 4)

    def items(self, modality: str, split: Split, indices: Indices) -> list[Item]:
        """Pictures."""
        if modality != "image":
            raise no_modality(self._task, modality, "image")
        return [_picture_item(self._paths[split][i]) for i in indices]


def shape_box(pixels: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """Box (cx, cy, w, h in 0..1) of what differs from the ground of ``pixels`` [H, W, 3].

    The ground is the median colour of the border. A picture of nothing but ground gives
    the whole picture.
    """
    values = pixels.astype(np.int64)
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    shape = np.abs(values - np.median(border, axis=0)).sum(axis=2) > CONTRAST
    height, width = shape.shape
    ys, xs = np.nonzero(shape)
    if not len(ys):
        return 0.5, 0.5, 1.0, 1.0
    left, right = int(xs.min()) / width, (int(xs.max()) + 1) / width
    top, bottom = int(ys.min()) / height, (int(ys.max()) + 1) / height
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _picture(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


@cache
def _box(path: Path) -> tuple[float, float, float, float]:
    return shape_box(np.asarray(_picture(path)))


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _picture_item(path: Path) -> Item:
    return Item(_digest(path), lambda: _picture(path))
