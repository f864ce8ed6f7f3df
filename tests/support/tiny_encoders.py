"""Encoders of tiny parts: what they give is quick to make and tells inputs apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hffm_flower.data.dataset import Item
from hffm_flower.models.backbones import Weights
from hffm_flower.models.encoders.encoder import (
    Stream,
    Tail,
    Tokens,
    Uncut,
    check_cut,
    fingerprint_of,
    full,
)
from hffm_flower.seeding import generator

WIDTH = 8


class TinyImage(Uncut):
    """Arrays [4, 6]: four tokens, as a stream and as a grid of 2 x 2."""

    assets: ClassVar[tuple[str, ...]] = ()
    modality: ClassVar[str] = "image"
    streams: Mapping[str, Stream] = {"image": Stream(4, 6), "image-grid": Stream(4, 6)}
    cacheable: ClassVar[bool] = False
    made: ClassVar[list[str]] = []

    def __init__(self, weights: Weights, seed: int, device: torch.device, cut: int = 0) -> None:
        self.made.append(weights)

    def fingerprint(self) -> str:
        """Hex SHA-256 of the name."""
        return fingerprint_of("tiny-image")

    def encode(self, items: Sequence[Item]) -> dict[str, Tokens]:
        """The arrays as they are."""
        values = torch.from_numpy(_stack(items, (4, 6)))
        return {"image": full(values), "image-grid": full(values.flip(-1))}


class TinySensor(Uncut):
    """Arrays [5, 3]: five tokens."""

    assets: ClassVar[tuple[str, ...]] = ()
    modality: ClassVar[str] = "sensor"
    streams: Mapping[str, Stream] = {"sensor": Stream(5, 3)}
    cacheable: ClassVar[bool] = False

    def __init__(self, weights: Weights, seed: int, device: torch.device, cut: int = 0) -> None:
        del weights, seed, device, cut

    def fingerprint(self) -> str:
        """Hex SHA-256 of the name."""
        return fingerprint_of("tiny-sensor")

    def encode(self, items: Sequence[Item]) -> dict[str, Tokens]:
        """The arrays as they are."""
        return {"sensor": full(torch.from_numpy(_stack(items, (5, 3))))}


class DeepImage(TinyImage):
    """`TinyImage` with two blocks behind it, through which "image" passes."""

    blocks: ClassVar[int] = 2

    def __init__(self, weights: Weights, seed: int, device: torch.device, cut: int = 0) -> None:
        super().__init__(weights, seed, device)
        self._cut = check_cut("deep-image", self.blocks, cut)

    @classmethod
    def cut_streams(cls, cut: int) -> Mapping[str, Stream]:
        """The same shapes everywhere."""
        check_cut("deep-image", cls.blocks, cut)
        return cls.streams

    @classmethod
    def passing(cls, cut: int) -> frozenset[str]:
        """The grid leaves before."""
        return frozenset(["image"] if cut else [])

    def encode(self, items: Sequence[Item]) -> dict[str, Tokens]:
        """What `TinyImage` gives, through the blocks that are not cut off."""
        found = super().encode(items)
        for block in _deep_blocks()[: self.blocks - self._cut]:
            with torch.no_grad():
                found["image"] = full(block(found["image"].values))
        return found

    def tail(self) -> Tail:
        """The blocks that are cut off."""
        return DeepTail(_deep_blocks()[self.blocks - self._cut :])


class DeepTail(Tail):
    """Blocks ``0``, ..."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__({str(i): b for i, b in enumerate(blocks)}, ["image"])

    def run(self, stream: str, tokens: Tokens) -> Tokens:
        """One block after the other."""
        values = tokens.values
        for block in self.children():
            values = block(values)
        return full(values)


def _deep_blocks() -> list[nn.Module]:
    draw = torch.Generator().manual_seed(7)
    blocks: list[nn.Module] = []
    for _ in range(DeepImage.blocks):
        layer = nn.Linear(6, 6)
        nn.init.normal_(layer.weight, std=0.5, generator=draw)
        nn.init.zeros_(layer.bias)
        blocks.append(nn.Sequential(layer, nn.Tanh()))
    return blocks


class TinyText(Uncut):
    """Words: up to three tokens of the backbone's width, each drawn from its word."""

    assets: ClassVar[tuple[str, ...]] = ()
    modality: ClassVar[str] = "text"
    streams: Mapping[str, Stream] = {"text": Stream(3, WIDTH)}
    cacheable: ClassVar[bool] = True

    def __init__(self, weights: Weights, seed: int, device: torch.device, cut: int = 0) -> None:
        del weights, seed, device, cut

    def fingerprint(self) -> str:
        """Hex SHA-256 of the name."""
        return fingerprint_of("tiny-text")

    def encode(self, items: Sequence[Item]) -> dict[str, Tokens]:
        """One token per word; no token behind the last."""
        values, mask = torch.zeros(len(items), 3, WIDTH), torch.zeros(len(items), 3).bool()
        for row, item in enumerate(items):
            for at, word in enumerate(str(item.load()).split()[:3]):
                drawn = generator(0, "word", word).standard_normal(WIDTH)
                values[row, at] = torch.from_numpy(drawn.astype(np.float32))
                mask[row, at] = True
        return {"text": Tokens(values, mask)}


def _stack(items: Sequence[Item], shape: tuple[int, int]) -> NDArray[np.float32]:
    arrays = np.zeros((len(items), *shape), dtype=np.float32)
    for row, item in enumerate(items):
        array = item.load()
        assert isinstance(array, np.ndarray)
        arrays[row] = array
    return arrays
