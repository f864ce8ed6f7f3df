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
from hffm_flower.tasks import TASKS

RATE_HZ: Final = 50
WINDOW: Final = 150  # samples: 3 s
HOP: Final = 100  # samples
LAST_TRAIN_SUBJECT: Final = 7
PERIODS: Final = range(40, 200)  # samples, of a repetition
WINDOWS_PER_ANSWER: Final = 10  # so that the task is as large as a ten-answer one


class Watch:
    """Windows [150, 6], each channel normalised by the training people's mean and deviation.

    Attributes:
        ahead: Samples that every recording has behind each window.
    """

    assets: ClassVar[tuple[str, ...]] = ("seglearn",)
    ahead: int = 0

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
        self.recordings = [((x - mean) / deviation).astype(np.float32) for x in table["X"]]
        counts: dict[Split, int] = {"train": train_per_answer, "test": test_per_answer}
        self._windows: dict[Split, NDArray[np.int64]] = {}
        self._labels: dict[Split, NDArray[np.int64]] = {}
        self._groups: dict[Split, NDArray[np.int64]] = {}
        for split, per_answer in counts.items():
            places = [
                (r, start)
                for r in np.nonzero(of_train == (split == "train"))[0]
                for start in range(0, len(self.recordings[r]) - WINDOW - self.ahead + 1, HOP)
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

    def targets(self, split: Split, indices: Indices) -> NDArray[np.int64] | NDArray[np.float32]:
        """Exercises [n]."""
        return self._labels[split][np.asarray(indices, dtype=np.int64)]

    def places(self, split: Split, indices: Indices) -> NDArray[np.int64]:
        """Recording and first sample of windows [n, 2]."""
        return self._windows[split][np.asarray(indices, dtype=np.int64)]

    def items(self, modality: str, split: Split, indices: Indices) -> list[Item]:
        """Windows [150, 6], time by channel."""
        if modality != "sensor":
            raise no_modality(self._task, modality, "sensor")
        return [self._item(*map(int, self._windows[split][i])) for i in indices]

    def _item(self, recording: int, start: int) -> Item:
        window = self.recordings[recording][start : start + WINDOW]
        return Item(hashlib.sha256(window.tobytes()).hexdigest(), window.copy)


class WatchRate(Watch):
    """Windows with the pace of their recording, in repetitions a minute.

    The pace is that of the whole recording, ten to fifty seconds; a window holds one to three
    repetitions.
    """

    def targets(self, split: Split, indices: Indices) -> NDArray[np.float32]:
        """Paces [n, 1], in the task's scale."""
        mean, deviation = TASKS[self._task].scale
        paces = [pace(self.recordings[r]) for r, _ in self.places(split, indices)]
        return ((np.array(paces, dtype=np.float32) - mean) / deviation).reshape(-1, 1)


class WatchForecast(Watch):
    """Windows with the samples that follow them."""

    def __init__(
        self, task: str, *, train_per_answer: int, test_per_answer: int, seed: int
    ) -> None:
        self.ahead = TASKS[task].horizon
        super().__init__(
            task, train_per_answer=train_per_answer, test_per_answer=test_per_answer, seed=seed
        )

    def targets(self, split: Split, indices: Indices) -> NDArray[np.float32]:
        """What follows [n, 3 + H, 6]: three rows of `frame`, then the samples."""
        rows = np.empty((len(indices), 3 + self.ahead, 6), dtype=np.float32)
        for at, (recording, start) in enumerate(self.places(split, indices)):
            end = start + WINDOW
            rows[at, :3] = frame(self.recordings[recording][start:end])
            rows[at, 3:] = self.recordings[recording][end : end + self.ahead]
        return rows


def frame(window: NDArray[np.float32]) -> NDArray[np.float32]:
    """What of a window [T, C] its forecast is measured in [3, C]: mean, deviation, last sample."""
    return np.stack([window.mean(axis=0), window.std(axis=0), window[-1]])


def pace(samples: NDArray[np.float32]) -> float:
    """Repetitions a minute of a recording [T, C]: the highest peak of its autocorrelation.

    All channels together, each with the same weight, over periods of 0.8 to 4 s.
    """
    scaled = (samples - samples.mean(axis=0)) / samples.std(axis=0)
    spectrum = np.abs(np.fft.rfft(scaled, axis=0, n=2 * len(samples))) ** 2
    likeness = np.fft.irfft(spectrum.sum(axis=1))[: PERIODS.stop]
    likeness /= len(samples) - np.arange(PERIODS.stop)
    return 60 * RATE_HZ / (PERIODS.start + int(np.argmax(likeness[PERIODS.start :])))
