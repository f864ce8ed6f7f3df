"""Encoders, one per modality, the cache of their tokens, and their tails that may be trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hffm_flower.models.encoders.cache import FeatureCache
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
