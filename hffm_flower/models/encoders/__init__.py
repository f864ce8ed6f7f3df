"""Encoders, one per modality, the cache of their tokens, and their tails that may be trained."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final, cast

from hffm_flower.errors import ConfigError, one_of
from hffm_flower.models.checkpoints import find_checkpoint
from hffm_flower.models.encoders.cache import FeatureCache
from hffm_flower.models.encoders.checkpoint import PREFIX, CheckpointEncoder, Precision
from hffm_flower.models.encoders.checkpoint_audio import AudioCheckpoint
from hffm_flower.models.encoders.checkpoint_image import ImageCheckpoint
from hffm_flower.models.encoders.checkpoint_text import TextCheckpoint
from hffm_flower.models.encoders.embeddings import EMBEDDINGS, Embeddings, embeddings_of
from hffm_flower.models.encoders.encoder import Encoder, Stream, Tail, Tokens, Weights
from hffm_flower.models.encoders.lite0 import Lite0
from hffm_flower.models.encoders.minilm import MiniLm
from hffm_flower.models.encoders.patches import Patches
from hffm_flower.models.encoders.speech import Speech

__all__ = [
    "CHECKPOINT_ENCODERS",
    "ENCODERS",
    "PREFIX",
    "CheckpointEncoder",
    "Embeddings",
    "Encoder",
    "FeatureCache",
    "Precision",
    "Stream",
    "Tail",
    "Tokens",
    "Weights",
    "encoder_type",
]

ENCODERS: Final[Mapping[str, type[Encoder]]] = {
    "lite0": Lite0,
    "minilm": MiniLm,
    "patches": Patches,
    "speech": Speech,
}
"""Encoders that come with the install."""

CHECKPOINT_ENCODERS: Final[Mapping[str, type[CheckpointEncoder]]] = {
    "audio": AudioCheckpoint,
    "image": ImageCheckpoint,
    "text": TextCheckpoint,
}
"""Modality -> what reads checkpoints for it; its ``anatomies`` are the architectures."""


def encoder_type(modality: str, name: str, *, precision: Precision = "fp32") -> type[Encoder]:
    """The encoder called ``name``: one of `ENCODERS`, or of the checkpoint behind ``hf:``.

    Args:
        modality: What it is to read.
        name: As in ``model.encoders``.
        precision: In which the frozen part of a checkpoint computes; others: float32.

    Raises:
        ConfigError: There is none, or it does not read ``modality``.
    """
    if name.startswith(PREFIX):
        return _of_checkpoint(modality, name.removeprefix(PREFIX), precision)
    one_of("encoder", name, (*ENCODERS, f"{PREFIX}FOLDER-OR-HUB-NAME"), key="model.encoders")
    if ENCODERS[name].modality != modality:
        raise ConfigError(
            f"encoder {name!r} reads {ENCODERS[name].modality}, not {modality}",
            key="model.encoders",
        )
    return ENCODERS[name]


@lru_cache(maxsize=32)
def _of_checkpoint(modality: str, source: str, precision: Precision) -> type[Encoder]:
    what = "modality of a checkpoint"
    one_of(what, modality, CHECKPOINT_ENCODERS, key="model.encoders")
    reader, own = CHECKPOINT_ENCODERS[modality], EMBEDDINGS.get(modality, {})
    found = find_checkpoint(source, allowed={*reader.anatomies, *own}, key="model.encoders")
    if found.model_type in own:
        return embeddings_of(modality, found)
    return cast("type[Encoder]", reader.of(source, precision))
