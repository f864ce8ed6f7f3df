"""Smart-watch shoulder exercises: accelerometer and gyroscope at 50 Hz, ten people.

Windows of 3 s every 2 s. People 1-7 train, 8-10 test. The file is a pickle: it is opened
only after its hash was checked (`hffm_flower.assets`).

Source: D. Burns et al. 2018, arXiv 1802.01489; data of seglearn 1.2.5 (BSD).
"""

from __future__ import annotations

import hashlib
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from hffm_flower.assets import asset_root
from hffm_flower.data.dataset import Indices, Item, Split, no_modality
from hffm_flower.seeding import generator

WINDOW: Final = 150  # samples: 3 s at 50 Hz
HOP: Final = 100  # samples
LAST_TRAIN_SUBJECT: Final = 7
WINDOWS_PER_ANSWER: Final = 10  # so that the task is as large as a ten-answer one


class Watch:
    """Windows [150, 6], each channel normalised by the training people's mean and deviation."""

    assets: ClassVar[tuple[str, ...]] = ("seglearn",)

    def __init__(
        self, task: str, *, train_per_answer: int, test_per_answer: int, seed: int
    ) -> None:
        path = asset_root("seglearn") / "data" / "watch_dataset.npy"
        table = np.load(path, allow_pickle=True).item()
        subjects = np.asarray(table["subject"], dtype=np.int64)
        exercises = np.asarray(table["y"], dtype=np.int64)
        of_train = subjects <= LAST_TRAIN_SUBJECT
        samples = np.concatenate([x for x, t in zip(table["X"], of_train, strict=True) if t])
        mean, deviation = samples.mean(axis=0), samples.std(axis=0)
        self._task = task
        self._recordings = [((x - mean) / deviation).astype(np.float32) for x in table["X"]]
        counts: dict[Split, int] = {"train": train_per_answer, "test": test_per_answer}
        self._windows: dict[Split, NDArray[np.int64]] = {}
        self._labels: dict[Split, NDArray[np.int64]] = {}
        self._groups: dict[Split, NDArray[np.int64]] = {}
        for split, per_answer in counts.items():
            places = [
                (r, start)
                for r in np.nonzero(of_train == (split == "train"))[0]
                for start in range(0, len(self._recordings[r]) - WINDOW + 1, HOP)
            ]
            order = generator(seed, "data", task, split).permutation(len(places))
            chosen = np.array(places, dtype=np.int64)[order[: per_answer * WINDOWS_PER_ANSWER]]
            self._windows[split] = chosen
            self._labels[split] = exercises[chosen[:, 0]]
            self._groups[split] = subjects[chosen[:, 0]]

    def labels(self, split: Split) -> NDArray[np.int64]:
        """Exercises [N]."""
        return self._labels[split].copy()

    def groups(self, split: Split) -> NDArray[np.int64]:
        """People [N], 1-10."""
        return self._groups[split].copy()

    def targets(self, split: Split, indices: Indices) -> NDArray[np.int64]:
        """Exercises [n]."""
        return self._labels[split][np.asarray(indices, dtype=np.int64)]

    def items(self, modality: str, split: Split, indices: Indices) -> list[Item]:
        """Windows [150, 6], time by channel."""
        if modality != "sensor":
            raise no_modality(self._task, modality, "sensor")
        return [self._item(*map(int, self._windows[split][i])) for i in indices]

    def _item(self, recording: int, start: int) -> Item:
        window = self._recordings[recording][start : start + WINDOW]
        return Item(hashlib.sha256(window.tobytes()).hexdigest(), window.copy)
