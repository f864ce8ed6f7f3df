"""Sound: speech encoders of checkpoints (Whisper, wav2vec 2.0, HuBERT); 9 tokens.

Clips are 1.5 s at 16 kHz. The states behind the last block, one every 20 ms, become nine
means over time.

Whisper was trained on 30 s, the rest of which is silence for a short clip: 1500 positions, of
which a clip fills 75. Here it gets those 75 alone, the first ones, which is a twentieth of
the tokens. Its states are not those of the padded clip, whose tokens attend to the silence too.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hffm_flower.data.dataset import Item
from hffm_flower.errors import ConfigError
from hffm_flower.models.checkpoints import Checkpoint, quiet
from hffm_flower.models.encoders.checkpoint import Anatomy, CheckpointEncoder
from hffm_flower.models.encoders.encoder import Stream, Tokens, full
from hffm_flower.models.encoders.speech import SAMPLES

RATE: Final = 16_000
TOKENS: Final = 9
FRAMES: Final = 75
"""States of Whisper for a clip: a mel frame every 160 samples, of which a convolution takes two."""
_UNMASKED: Final = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}


class AudioCheckpoint(CheckpointEncoder):
    """Clips [24000] at 16 kHz -> 9 tokens ("audio"), in the order of time."""

    modality: ClassVar[str] = "audio"
    anatomies: ClassVar[Mapping[str, Anatomy]] = {
        "whisper": Anatomy("WhisperModel", "layers", "layer_norm", body="encoder"),
        "wav2vec2": Anatomy(
            "Wav2Vec2Model", "encoder.layers", changes={**_UNMASKED, "add_adapter": False}
        ),
        "hubert": Anatomy("HubertModel", "encoder.layers", changes=_UNMASKED),
    }
    files: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("preprocessor_config.json", "processor_config.json"),
    )

    @classmethod
    def anatomy_of(cls, checkpoint: Checkpoint) -> Anatomy:
        """Large wav2vec 2.0 and HuBERT have their norm behind the blocks, small ones in front."""
        anatomy = super().anatomy_of(checkpoint)
        if getattr(checkpoint.config, "do_stable_layer_norm", False):
            return dataclasses.replace(anatomy, norm="encoder.layer_norm")
        return anatomy

    @classmethod
    def streams_of(cls, width: int) -> Mapping[str, Stream]:
        """One stream."""
        return {"audio": Stream(TOKENS, width)}

    @classmethod
    def front_tokens(cls) -> int:
        """States of a clip."""
        config, states = cls.checkpoint.config, SAMPLES
        if cls.checkpoint.model_type == "whisper":
            return FRAMES
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            states = (states - kernel) // stride + 1
        return states

    @classmethod
    def prepare(cls, items: Sequence[Item]) -> dict[str, Tensor]:
        """Samples [N, 24000], or mel frames [N, bands, 150]; each clip by itself."""
        made = _extractor(cls.checkpoint)
        name = made.model_input_names[0]
        ready = [
            made(
                _clip(item), sampling_rate=RATE, padding=False, truncation=False,
                return_attention_mask=False, return_tensors="np",
            )[name][0]
            for item in items
        ]  # fmt: skip
        return {name: torch.from_numpy(np.stack(ready))}

    @classmethod
    def pool(cls, stream: str, tokens: Tokens, head: nn.Module | None) -> Tokens:
        """Means over time."""
        del stream, head
        return full(functional.adaptive_avg_pool1d(tokens.values.mT, TOKENS).mT)

    @classmethod
    def blank(cls) -> Item:
        """Silence."""
        return Item("", lambda: np.zeros(SAMPLES, np.float32))

    @classmethod
    def shaped(cls, body: nn.Module) -> nn.Module:
        """Whisper with the positions that a clip fills."""
        if cls.checkpoint.model_type == "whisper":
            whisper: Any = body
            whisper.config.max_source_positions = FRAMES
            positions = whisper.embed_positions.weight[:FRAMES].clone()
            whisper.embed_positions = nn.Embedding(FRAMES, positions.shape[1], _weight=positions)
        return body


@lru_cache(maxsize=8)
def _extractor(checkpoint: Checkpoint) -> Any:
    checkpoint.file(*AudioCheckpoint.files[0])
    auto = importlib.import_module("transformers").AutoFeatureExtractor
    try:
        with quiet():
            made = auto.from_pretrained(checkpoint.folder, local_files_only=True)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise ConfigError(
            f"the preprocessing of checkpoint {checkpoint.source!r} in {checkpoint.folder} cannot "
            f"be used: {error}",
            key=checkpoint.key,
        ) from error
    if made.sampling_rate != RATE:
        raise ConfigError(
            f"checkpoint {checkpoint.source!r} reads {made.sampling_rate} samples a second; "
            f"allowed: {RATE}",
            key=checkpoint.key,
        )
    return made


def _clip(item: Item) -> NDArray[np.float32]:
    clip = item.load()
    if not isinstance(clip, np.ndarray) or clip.shape != (SAMPLES,):
        shape = getattr(clip, "shape", type(clip).__name__)
        raise TypeError(f"the audio encoder reads clips [{SAMPLES}], not {shape}")
    return clip.astype(np.float32)
