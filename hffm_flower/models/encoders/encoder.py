"""The seam between a modality's encoder and the model that reads its tokens.

An encoder is frozen. With a *cut* it leaves out its last blocks, which then are a `Tail`
that may be trained: only what is in front of the cut is cached.

Shapes: N items, T tokens, D width.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from hffm_flower.data.dataset import Item
from hffm_flower.errors import ConfigError

Weights = Literal["pretrained", "random"]

NO_WEIGHTS: Final = "encoder {!r} has no weights to tune"

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


class Tail(nn.Module, ABC):
    """The blocks behind an encoder's cut: a copy, frozen until `trained_tail` frees it.

    It stays in evaluation mode whatever `train` is told: statistics of BatchNorm are those
    of the pretrained encoder, and nothing is dropped at random. Gradients flow all the same.

    Args:
        blocks: Name -> submodule, in the order in which they run.
        streams: Streams that pass through it; the others leave the encoder before the cut.
    """

    def __init__(self, blocks: Mapping[str, nn.Module], streams: Iterable[str]) -> None:
        super().__init__()
        self.streams = frozenset(streams)
        for name, block in blocks.items():
            self.add_module(name, block)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        del mode
        return super().train(False)

    def forward(self, stream: str, tokens: Tokens) -> Tokens:
        """Tokens of ``stream`` [B, T, D] at the cut -> [B, T', D'], those of the whole encoder.

        Raises:
            ValueError: The stream does not pass through here.
        """
        if stream not in self.streams:
            passing = ", ".join(sorted(self.streams)) or "none"
            raise ValueError(f"stream {stream!r} does not pass through this tail; {passing} do")
        return self.run(stream, tokens)

    @abstractmethod
    def run(self, stream: str, tokens: Tokens) -> Tokens:
        """As `forward`, for a stream that does pass."""


class Encoder(Protocol):
    """Turns raw inputs of one modality into tokens; what it holds is never trained.

    Names and streams are class attributes: reading them loads nothing. Weights are loaded
    at the first `encode` or `tail`.

    Attributes:
        assets: Packaged assets that it loads, names in `hffm_flower.assets.ASSETS`.
        modality: What it reads.
        streams: Name of each output -> its shape. Of the class: that of the whole encoder;
            of an instance: that at its cut.
        cacheable: Whether its outputs are worth keeping on disk.
        blocks: How many blocks can be cut off; 0: it has no weights to tune.
    """

    assets: ClassVar[tuple[str, ...]]
    modality: ClassVar[str]
    streams: Mapping[str, Stream]
    cacheable: ClassVar[bool]
    blocks: ClassVar[int]

    def __init__(self, weights: Weights, seed: int, device: torch.device, cut: int = 0) -> None:
        """Choose the weights; ``seed`` draws the random ones.

        Args:
            weights: Which weights to use.
            seed: Draws the random ones.
            device: Where to compute.
            cut: Number of last blocks that are left out.

        Raises:
            ConfigError: There are not that many blocks.
        """
        ...

    @classmethod
    def cut_streams(cls, cut: int) -> Mapping[str, Stream]:
        """Shapes at ``cut``, under the same names as those of the whole encoder.

        Raises:
            ConfigError: There are not that many blocks.
        """
        ...

    @classmethod
    def passing(cls, cut: int) -> frozenset[str]:
        """Streams that pass through the blocks behind ``cut``; the others leave before."""
        ...

    def fingerprint(self) -> str:
        """Hex SHA-256 of all that the outputs depend on, found without loading weights."""
        ...

    def encode(self, items: Sequence[Item]) -> dict[str, Tokens]:
        """Tokens of every stream at the cut, on the CPU, detached; an item's bits are its own."""
        ...

    def tail(self) -> Tail:
        """A fresh copy of the blocks that are cut off, on the encoder's device.

        Raises:
            ConfigError: The encoder has no weights to tune.
        """
        ...


class Uncut:
    """For an encoder without blocks that could be tuned: the part of it that is about cuts."""

    streams: Mapping[str, Stream]
    blocks: ClassVar[int] = 0

    @classmethod
    def cut_streams(cls, cut: int) -> Mapping[str, Stream]:
        """The one shape; there is nothing to cut."""
        check_cut(cls.__name__.lower(), cls.blocks, cut)
        return cls.streams

    @classmethod
    def passing(cls, cut: int) -> frozenset[str]:
        """None."""
        return frozenset()

    def tail(self) -> Tail:
        """There is none."""
        raise ConfigError(NO_WEIGHTS.format(type(self).__name__.lower()), key="model.tune")


def check_cut(name: str, blocks: int, cut: int) -> int:
    """Return ``cut`` if encoder ``name``, which has ``blocks`` blocks, can be cut there.

    Raises:
        ConfigError: It cannot; the message says what is allowed.
    """
    if blocks == 0 and cut != 0:
        raise ConfigError(NO_WEIGHTS.format(name), key="model.tune")
    if not 0 <= cut <= blocks:
        raise ConfigError(
            f"cannot tune the last {cut} blocks of encoder {name!r}; allowed: 0 to {blocks}",
            key="model.tune",
        )
    return cut


def batches(items: Sequence[Any]) -> Iterator[tuple[list[Any], int]]:
    """Batches of exactly `BATCH` items, and how many of each are real."""
    for start in range(0, len(items), BATCH):
        real = list(items[start : start + BATCH])
        yield real + real[-1:] * (BATCH - len(real)), len(real)


def fingerprint_of(*parts: str | int | float) -> str:
    """Hex SHA-256 of the parts, in order."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def cut_mark(cut: int) -> tuple[str | int, ...]:
    """What a fingerprint says of the cut: nothing where there is none."""
    return ("cut", cut) if cut else ()


def full(values: Tensor) -> Tokens:
    """Tokens of which none is missing, on the device of ``values``."""
    return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device))


def as_tokens(map_NCHW: Tensor) -> Tensor:
    """A map as tokens [N, H * W, C], row by row."""
    return map_NCHW.flatten(2).transpose(1, 2)


def as_map(tokens_NTC: Tensor, height: int) -> Tensor:
    """Tokens as a map [N, C, height, T / height]; the inverse of `as_tokens`."""
    items, tokens, width = tokens_NTC.shape
    return tokens_NTC.transpose(1, 2).view(items, width, height, tokens // height)
