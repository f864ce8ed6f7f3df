"""One run for every kind of module, as changes of the tiny settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DEEP: Final = "image=deep-image text=tiny-text sensor=tiny-sensor"

KINDS: Final[Mapping[str, Mapping[str, object]]] = {
    "bottleneck": {},
    "none": {"model__adapter": "none"},
    "lora-exact": {"model__adapter": "lora", "model__lora_ranks": "2 3 5"},
    "lora-exact rslora": {
        "model__adapter": "lora", "model__lora_ranks": "2 4", "model__lora_scaling": "rslora",
        "server__edge_rank": 3,
    },
    "lora-naive": {
        "model__adapter": "lora", "model__lora_ranks": "2 3 5", "server__lora_rule": "lora-naive",
    },
    "lora-ffa": {
        "model__adapter": "lora", "model__lora_ranks": 3, "server__lora_rule": "lora-ffa",
    },
    "lora-alternate": {
        "model__adapter": "lora", "model__lora_ranks": 3, "server__lora_rule": "lora-alternate",
    },
    "lora-share-a": {
        "model__adapter": "lora", "model__lora_ranks": 3, "server__lora_rule": "lora-share-a",
    },
    "experts": {
        "model__adapter": "experts", "model__experts": 3, "model__experts_per_example": 2,
        "model__experts_held": 2,
    },
    "prompts": {"model__prompts": "task=2 modality=1 missing=2"},
    "dropout": {"model__prompts": "missing=1", "train__modality_dropout": 0.5},
    "last blocks": {"model__encoders": DEEP, "model__tune": "image=last:2"},
    "lora in an encoder": {"model__encoders": DEEP, "model__tune": "image=lora:2:1"},
    "factors in an encoder": {
        "model__encoders": DEEP, "model__tune": "image=lora:2:2",
        "server__lora_rule": "lora-alternate",
    },
    "whole": {"model__whole": True},
}  # fmt: skip
"""Name -> changes; every value of ``model.adapter`` and every rule for LoRA is in it."""
