"""Encoders, one per modality, the cache of their tokens, and their tails that may be trained."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from hffm_flower.errors import one_of
from hffm_flower.models.checkpoints import find_checkpoint
from hffm_flower.models.encoders.cache import FeatureCache
from hffm_flower.models.encoders.embeddings import EMBEDDINGS, embeddings_of
from hffm_flower.models.encoders.encoder import Encoder, Stream, Tail, Tokens, Weights
from hffm_flower.models.encoders.lite0 import Lite0
from hffm_flower.models.encoders.minilm import MiniLm
from hffm_flower.models.encoders.patches import Patches
from hffm_flower.models.encoders.speech import Speech

__all__ = ["ENCODERS", "Encoder", "FeatureCache", "Stream", "Tail", "Tokens", "Weights"]

ENCODERS: Final[Mapping[str, type[Encoder]]] = {
    "lite0": Lite0,
    "minilm": MiniLm,
    "patches": Patches,
    "speech": Speech,
}


def encoder_type(modality: str, name: str) -> type[Encoder]:
    if name.startswith("hf:"):
        return _embeddings(modality, name.removeprefix("hf:"))
    one_of("encoder", name, ENCODERS, key="model.encoders")
    return ENCODERS[name]


@lru_cache(maxsize=32)
def _embeddings(modality: str, source: str) -> type[Encoder]:
    allowed = EMBEDDINGS[modality]
    return embeddings_of(modality, find_checkpoint(source, allowed=allowed, key="model.encoders"))
