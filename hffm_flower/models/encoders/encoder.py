"""The seam between a modality's frozen encoder and the model that reads its tokens.

Shapes: N items, T tokens, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, Protocol

import torch
from torch import Tensor

from hffm_flower.data.dataset import Item

Weights = Literal["pretrained", "random"]

BATCH: Final = 8
"""Items in every forward pass: a shorter batch is filled up by repetition.

Kernels choose their order of summation by shape, so an item's bits depend on the size of
its batch, but (measured for every encoder here, and tested) not on its place in the batch
or on its companions. With one size, bits depend on the item alone.
"""


@dataclass(frozen=True, slots=True)
class Stream:
    """Shape of one output of an encoder: T tokens of width D for every item."""

    tokens: int
    width: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token states of N items.

    Attributes:
        values: float32 [N, T, D]; zeros where there is no token.
        mask: bool [N, T]: whether there is a token.
    """

    values: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> Tokens:
        """The same tokens on ``device``."""
        return Tokens(self.values.to(device), self.mask.to(device))

    def index(self, rows: Tensor | Sequence[int]) -> Tokens:
        """The items ``rows``, in that order."""
        at = torch.as_tensor(rows, dtype=torch.long, device=self.values.device)
        return Tokens(self.values[at], self.mask[at])


class Encoder(Protocol):
    """Turns raw inputs of one modality into tokens; never trained.

    Names and streams are class attributes: reading them loads nothing. Weights are loaded
    at the first `encode`.

    Attributes:
        assets: Packaged assets that it loads, names in `hffm_flower.assets.ASSETS`.
        modality: What it reads.
        streams: Name of each output -> its shape.
        cacheable: Whether its outputs are worth keeping on disk.
    """

    assets: ClassVar[tuple[str, ...]]
    modality: ClassVar[str]
    streams: ClassVar[Mapping[str, Stream]]
    cacheable: ClassVar[bool]

    def __init__(self, weights: Weights, seed: int, device: torch.device) -> None:
        """Choose the weights; ``seed`` draws the random ones."""
        ...

    def fingerprint(self) -> str:
        """Hex SHA-256 of all that the outputs depend on, found without loading weights."""
        ...

    def encode(self, items: Sequence[Item]) -> dict[str, Tokens]:
        """Tokens of every stream, on the CPU, detached; an item's bits are its own."""
        ...


def batches(items: Sequence[Item]) -> Iterator[tuple[list[Item], int]]:
    """Batches of exactly `BATCH` items, and how many of each are real."""
    for start in range(0, len(items), BATCH):
        real = list(items[start : start + BATCH])
        yield real + real[-1:] * (BATCH - len(real)), len(real)


def fingerprint_of(*parts: str | int | float) -> str:
    """Hex SHA-256 of the parts, in order."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def full(values: Tensor) -> Tokens:
    """Tokens of which none is missing."""
    return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool))
