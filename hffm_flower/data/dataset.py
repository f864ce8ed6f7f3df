"""The seam between a data set and everything that trains on it.

A data set knows its examples by position in a split. Metadata is read at once; pictures,
texts and windows only when an `Item` is loaded, so a device touches just its own share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from hffm_flower.errors import ConfigError

Split = Literal["train", "test"]
Indices = Sequence[int] | NDArray[np.int64]
RawInput = Image | str | NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Item:
    """One raw input that is loaded when it is needed.

    Attributes:
        digest: Hex SHA-256 of the content, found without decoding it.
        source: Makes the raw input: an RGB picture, a text, or a window [time, channel].
    """

    digest: str
    source: Callable[[], RawInput]

    def load(self) -> RawInput:
        """Read and decode the input."""
        return self.source()


class Dataset(Protocol):
    """Examples of one task, in two splits."""

    def labels(self, split: Split) -> NDArray[np.int64]:
        """Class of every example [N], for partitioning; zeros where there are no classes."""
        ...

    def groups(self, split: Split) -> NDArray[np.int64] | None:
        """Natural owner of every example [N], e.g. the person; None where there is none."""
        ...

    def targets(self, split: Split, indices: Indices) -> NDArray[np.int64] | NDArray[np.float32]:
        """What the head shall answer: classes int64 [n], or boxes float32 [n, 4]."""
        ...

    def items(self, modality: str, split: Split, indices: Indices) -> list[Item]:
        """Inputs of one modality, in the order of ``indices``."""
        ...


class DatasetFactory(Protocol):
    """Opens a data set for a task; reads metadata only.

    Attributes:
        assets: Packaged assets that it reads, names in `hffm_flower.assets.ASSETS`.
    """

    assets: tuple[str, ...]

    def __call__(
        self, task: str, *, train_per_answer: int, test_per_answer: int, seed: int
    ) -> Dataset:
        """Open the data set: about so many examples per answer, drawn by ``seed``."""
        ...


def text_item(text: str) -> Item:
    """A text that is already at hand."""
    return Item(hashlib.sha256(text.encode()).hexdigest(), lambda: text)


def no_modality(task: str, modality: str, has: str) -> ConfigError:
    """The error for a modality that a data set does not have."""
    return ConfigError(
        f"task {task!r} has no modality {modality!r}; it has: {has}", key="data.tasks"
    )


def too_many(task: str, split: Split, wanted: int, available: int) -> ConfigError:
    """The error for asking more examples of a class, or of the whole, than there are."""
    return ConfigError(
        f"{wanted} {split} examples asked of task {task!r}, but it has {available}; "
        f"lower data.{split}-per-answer",
        key=f"data.{split}-per-answer",
    )
