"""Images: vision transformers of checkpoints (ViT, DINOv2, CLIP, SigLIP).

Both streams come from the tokens behind the last block and its norm. "image" is the summary
that the network was trained to make, and what is where, coarsely: the class token (SigLIP:
its pooling head), and 3 x 3 means of the patches. "image-grid" is 6 x 6 means, row by row.

Pictures are prepared as the checkpoint says; where that crops, only the middle is seen, and
"image-grid" covers just that.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from hffm_flower.data.dataset import Item
from hffm_flower.errors import ConfigError
from hffm_flower.models.checkpoints import Checkpoint, quiet
from hffm_flower.models.encoders.checkpoint import Anatomy, CheckpointEncoder
from hffm_flower.models.encoders.encoder import Stream, Tokens, as_map, as_tokens, full

COARSE: Final = 3
FINE: Final = 6
PROBES: Final = ((64, 48), (48, 64))
"""Pictures [pixel] of two shapes, of which the preprocessing is to make one."""
ANY_SIZE: Final = {"interpolate_pos_encoding": True}

_CLIP: Final = Anatomy(
    "CLIPVisionModel", "encoder.layers", "post_layernorm", prefix=1, options=ANY_SIZE
)
_SIGLIP: Final = Anatomy(
    "SiglipVisionModel", "encoder.layers", "post_layernorm", "head",
    changes={"vision_use_head": True}, options=ANY_SIZE,
)  # fmt: skip


class ImageCheckpoint(CheckpointEncoder):
    """Pictures -> summary and 3 x 3 tokens ("image"), 6 x 6 tokens ("image-grid")."""

    modality: ClassVar[str] = "image"
    anatomies: ClassVar[Mapping[str, Anatomy]] = {
        "vit": Anatomy(
            "ViTModel", "layers", "layernorm", prefix=1,
            changes={"add_pooling_layer": False}, options=ANY_SIZE,
        ),
        "dinov2": Anatomy("Dinov2Model", "encoder.layer", "layernorm", prefix=1),
        "clip": _CLIP,
        "clip_vision_model": _CLIP,
        "siglip": _SIGLIP,
        "siglip_vision_model": _SIGLIP,
    }  # fmt: skip
    files: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("preprocessor_config.json", "processor_config.json"),
    )

    @classmethod
    def streams_of(cls, width: int) -> Mapping[str, Stream]:
        """Ten tokens and a square grid of 36."""
        return {"image": Stream(1 + COARSE**2, width), "image-grid": Stream(FINE**2, width)}

    @classmethod
    def front_tokens(cls) -> int:
        """The class token, if there is one, and the patches."""
        height, width = cls.patches()
        return cls.anatomy.prefix + height * width

    @classmethod
    def patches(cls) -> tuple[int, int]:
        """Rows and columns of patches."""
        sides = _pixels(cls.checkpoint)[1:]
        patch = cls.checkpoint.config_for(cls.anatomy.network).patch_size
        patch = patch if isinstance(patch, list | tuple) else (patch, patch)
        return sides[0] // patch[0], sides[1] // patch[1]

    @classmethod
    def prepare(cls, items: Sequence[Item]) -> dict[str, Tensor]:
        """Pixels [N, 3, H, W], each picture by itself."""
        pixels = np.stack([pixels_of(cls.checkpoint, picture_of(item)) for item in items])
        return {"pixel_values": torch.from_numpy(pixels)}

    @classmethod
    def pool(cls, stream: str, tokens: Tokens, head: nn.Module | None) -> Tokens:
        """Means of patches, and for "image" the summary in front of them."""
        x = tokens.values
        map_NCHW = as_map(x[:, cls.anatomy.prefix :], cls.patches()[0])
        if stream == "image-grid":
            return full(as_tokens(functional.adaptive_avg_pool2d(map_NCHW, FINE)))
        summary = x[:, :1] if head is None else head(x)[:, None]
        coarse = as_tokens(functional.adaptive_avg_pool2d(map_NCHW, COARSE))
        return full(torch.cat([summary, coarse], 1))

    @classmethod
    def blank(cls) -> Item:
        """A black picture."""
        return Item("", lambda: Image.new("RGB", PROBES[0]))


@lru_cache(maxsize=8)
def _processor(checkpoint: Checkpoint) -> Any:
    """The checkpoint's preprocessing, by Pillow."""
    checkpoint.file(*ImageCheckpoint.files[0])
    auto = importlib.import_module("transformers").AutoImageProcessor
    try:
        with quiet():
            return auto.from_pretrained(checkpoint.folder, local_files_only=True, backend="pil")
    except (OSError, ValueError, TypeError, AttributeError, KeyError, ImportError) as error:
        raise ConfigError(
            f"the preprocessing of checkpoint {checkpoint.source!r} in {checkpoint.folder} cannot "
            f"be used: {error}",
            key=checkpoint.key,
        ) from error


@lru_cache(maxsize=8)
def _pixels(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Shape (channels, height, width) of every prepared picture."""
    first, second = (pixels_of(checkpoint, Image.new("RGB", size)).shape for size in PROBES)
    if first != second:
        raise ConfigError(
            f"the preprocessing of checkpoint {checkpoint.source!r} keeps a picture's shape "
            f"({list(first)} and {list(second)} for two); it must resize or crop to one size, in "
            f"{checkpoint.file(*ImageCheckpoint.files[0])}",
            key=checkpoint.key,
        )
    return first


def pixels_of(checkpoint: Checkpoint, picture: Image.Image, **changes: Any) -> NDArray[np.float32]:
    """Pixels [3, H, W] as the checkpoint prepares a picture, with ``changes`` of how it does.

    Raises:
        ConfigError: What it needs is missing, or cannot be used.
    """
    made = _processor(checkpoint)
    with np.errstate(all="ignore"):
        prepared = made(picture, return_tensors="np", **changes)
    pixels: NDArray[np.float32] = prepared["pixel_values"][0]
    if not np.isfinite(pixels).all():
        raise ConfigError(
            f"the preprocessing of checkpoint {checkpoint.source!r} makes pixels that are not "
            f"finite; image_std is {made.image_std}, in "
            f"{checkpoint.file(*ImageCheckpoint.files[0])}",
            key=checkpoint.key,
        )
    return pixels


def picture_of(item: Item) -> Image.Image:
    """An item as a picture in colours.

    Raises:
        TypeError: It is none.
    """
    picture = item.load()
    if not isinstance(picture, Image.Image):
        raise TypeError(f"the image encoder reads pictures, not {type(picture).__name__}")
    return picture.convert("RGB")
