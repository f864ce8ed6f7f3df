"""Raw inputs of every modality, each drawn from its number."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from hffm_flower.data.dataset import Item, RawInput, text_item


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (20 + seed, 30, 3), np.uint8)
    return Image.fromarray(pixels)


def window(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((150, 6)).astype(np.float32)


def clip(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """1.5 s of a tone in noise, between -1 and 1."""
    tone = np.sin(2 * np.pi * (150 + 90 * seed) * np.arange(24_000) / 16_000)
    noise = np.random.default_rng(seed).uniform(-0.2, 0.2, 24_000)
    return (0.6 * tone + noise).astype(np.float32)


def items(modality: str, count: int) -> list[Item]:
    if modality == "text":
        words = ["Is this", "a red", "shape?", "what", "ONE", "banana", "here"]
        return [text_item(" ".join(words[i % 7 : 1 + i % 5 + i % 7])) for i in range(count)]
    makers: dict[str, Callable[[int], RawInput]] = {
        "image": picture, "sensor": window, "audio": clip
    }  # fmt: skip
    return [Item(f"{i:064x}", partial(makers[modality], i)) for i in range(count)]
