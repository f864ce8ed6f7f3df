"""Sensor windows: cut into patches or into channels, nothing more.

No pretrained encoder for such windows comes with the install, so the tokens are the raw
samples and the model's trainable projector is all that encodes them. ``weights`` and
``seed`` make no difference here.

Source: a token per channel: Liu et al. 2024, arXiv 2310.06625 (iTransformer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray

from hffm_flower.data.dataset import Item
from hffm_flower.models.encoders.encoder import (
    Stream,
    Tokens,
    Uncut,
    Weights,
    fingerprint_of,
    full,
)

WINDOW: Final = 150  # samples
CHANNELS: Final = 6
PATCHES: Final = 10
WIDTH: Final = WINDOW // PATCHES * CHANNELS
CODE: Final = "patches-1"


class Patches(Uncut):
    """Windows [150, 6] -> 10 tokens of 15 samples x 6 channels (0.3 s each at 50 Hz).

    And, for forecasts, 6 tokens of 150 samples: token i is channel i.
    """

    assets: ClassVar[tuple[str, ...]] = ()

    modality: ClassVar[str] = "sensor"
    streams: Mapping[str, Stream] = {
        "sensor": Stream(tokens=PATCHES, width=WIDTH),
        "sensor-channels": Stream(tokens=CHANNELS, width=WINDOW),
    }
    cacheable: ClassVar[bool] = False

    def __init__(self, weights: Weights, seed: int, device: torch.device, cut: int = 0) -> None:
        del weights, seed, device
        self.cut_streams(cut)  # refuses any

    def fingerprint(self) -> str:
        """Hex SHA-256 of the patch size."""
        return fingerprint_of(CODE, WINDOW, CHANNELS, PATCHES)

    def encode(self, items: Sequence[Item]) -> dict[str, Tokens]:
        """Patches, samples first: value i of a patch is channel i % 6 of sample i // 6."""
        windows = np.empty((len(items), WINDOW, CHANNELS), dtype=np.float32)
        for row, item in enumerate(items):
            windows[row] = _window(item)
        values = torch.from_numpy(windows)
        return {
            "sensor": full(values.reshape(-1, PATCHES, WIDTH)),
            "sensor-channels": full(values.transpose(1, 2).contiguous()),
        }


def _window(item: Item) -> NDArray[np.float32]:
    window = item.load()
    if not isinstance(window, np.ndarray) or window.shape != (WINDOW, CHANNELS):
        shape = getattr(window, "shape", type(window).__name__)
        raise TypeError(f"the sensor encoder reads windows [{WINDOW}, {CHANNELS}], not {shape}")
    return window
