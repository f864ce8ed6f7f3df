"""Runs on a small checkpoint as backbone: its own encoders, small tasks of pictures and words."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hffm_flower.config import RunConfig
from hffm_flower.data import DATASETS
from hffm_flower.data.dataset import Indices, Item, Split, text_item
from hffm_flower.seeding import generator
from hffm_flower.tasks import TASKS, TaskSpec
from tests.support import tiny

COLOURS = ("red", "green", "blue", "white")
LEVELS = ((220, 30, 30), (30, 200, 40), (40, 60, 230), (240, 240, 240))
QUESTIONS = ("what color is the circle?", "is the shape of this color red?", "color?")


class Swatches:
    """Noisy pictures of one colour, with a question; the colour is the answer."""

    assets: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, task: str, *, train_per_answer: int, test_per_answer: int, seed: int
    ) -> None:
        self._seed = seed
        per = {"train": train_per_answer, "test": test_per_answer}
        self._labels = {
            s: generator(seed, "swatch", task, s).permutation(np.arange(n * 4) % 4)
            for s, n in per.items()
        }

    def labels(self, split: Split) -> NDArray[np.int64]:
        return self._labels[split].astype(np.int64)

    def groups(self, split: Split) -> NDArray[np.int64] | None:
        return None

    def targets(self, split: Split, indices: Indices) -> NDArray[np.int64]:
        return self.labels(split)[np.asarray(indices, dtype=np.int64)]

    def items(self, modality: str, split: Split, indices: Indices) -> list[Item]:
        made = self._text if modality == "text" else self._picture
        return [made(split, int(i)) for i in indices]

    def _text(self, split: Split, index: int) -> Item:
        return text_item(QUESTIONS[index % len(QUESTIONS)])

    def _picture(self, split: Split, index: int) -> Item:
        rng = generator(self._seed, "swatch", split, index)
        colour = np.array(LEVELS[int(self._labels[split][index])])
        levels = (colour + rng.normal(0, 25, (20, 28, 3))).clip(0, 255).astype(np.uint8)
        digest = hashlib.sha256(levels.tobytes()).hexdigest()
        return Item(digest, lambda: Image.fromarray(levels))


SWATCH_TASKS = {
    name: TaskSpec(
        dataset="swatches",
        head="classification",
        inputs={"image": "image", "text": "text"},
        required=required,
        optional=optional,
        answers=COLOURS,
        chance=0.25,
    )
    for name, required, optional in (
        ("swatch4", ("image", "text"), ()),
        ("swatch4-free", ("image",), ("text",)),
    )
}


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the data set and its tasks into the registries."""
    entries: tuple[tuple[object, Mapping[str, object]], ...] = (
        (DATASETS, {"swatches": Swatches}),
        (TASKS, SWATCH_TASKS),
    )
    for registry, named in entries:
        for name, entry in named.items():
            monkeypatch.setitem(cast("dict[str, object]", registry), name, entry)
    tiny.forget()


def settings(root: Path, checkpoint: Path, **changes: object) -> RunConfig:
    """A run of two devices on ``checkpoint``, below ``root``."""
    base: dict[str, object] = {
        "rounds": 2,
        "tree__devices": 2,
        "tree__edges": 1,
        "data__tasks": "swatch4",
        "data__full_modality_share": 1.0,
        "data__train_per_answer": 6,
        "data__test_per_answer": 8,
        "data__alpha": 100.0,
        "model__backbone": f"hf:{checkpoint}",
        "model__encoders": f"image=hf:{checkpoint} text=hf:{checkpoint}",
        "model__adapter_rank": 4,
        "train__local_epochs": 1,
        "train__batch_size": 8,
        "train__device": "cpu",
        "train__learning_rate": 0.005,
        "server__deadline_s": 60.0,
        "paths__cache": str(root / "cache"),
        "paths__state": str(root / "state"),
    }
    return RunConfig().with_values(**{**base, **changes})
