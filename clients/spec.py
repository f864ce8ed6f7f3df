"""The model of a run, from its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError, one_of
from hffm_flower.lora import Scaling
from hffm_flower.models.encoders.tails import Tuning
from hffm_flower.models.parts import FACTORS, LoraSpec, ModelSpec
from hffm_flower.modules import ModuleKey
from hffm_flower.schedule import resting as at_rest
from hffm_flower.tasks import TASKS

MOST_TOKENS: Final = 64
"""Of a soft prompt."""


@lru_cache(maxsize=8)
def model_spec(config: RunConfig) -> ModelSpec:
    """The model of a run, checked.

    Raises:
        ConfigError: It names something unknown.
    """
    model = config.model
    spec = ModelSpec(
        backbone=model.backbone,
        encoders=config.encoder_names(),
        weights=model.weights,
        adapter_rank=model.adapter_rank,
        seed=config.seed,
        adapter=model.adapter,
        lora=LoraSpec(
            one_of("rule", config.server.lora_rule, FACTORS, key="server.lora-rule"),
            model.lora_ranks, model.lora_alpha, Scaling(model.lora_scaling),
            model.lora_targets, model.tune_targets,
        ),
        tune=tunings_of(config),
        prompts=prompts_of(config),
        experts=model.experts,
        experts_per_example=model.experts_per_example,
        whole=model.whole,
        dropped=config.train.modality_dropout > 0,
        adapter_layers=model.adapter_layers,
        wiring=model.adapter_wiring,
        precision=model.backbone_precision,
    )  # fmt: skip
    spec.check()
    return spec


def tunings_of(config: RunConfig) -> dict[str, Tuning]:
    """Modality -> what of its encoder is trained."""
    return {
        modality: dataclasses.replace(Tuning.parse(text), targets=config.model.tune_targets)
        for modality, text in config.pairs("model.tune", config.model.tune).items()
    }


def prompts_of(config: RunConfig) -> dict[str, int]:
    """What soft prompts stand for -> how many tokens each has."""
    found = {}
    for name, text in config.pairs("model.prompts", config.model.prompts).items():
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_TOKENS):
            raise ConfigError(
                f"{text!r} is no number of tokens; allowed: 1 to {MOST_TOKENS}", key="model.prompts"
            )
        found[name] = int(text)
    return found


def resting(config: RunConfig, keys: Iterable[ModuleKey], t: int) -> frozenset[ModuleKey]:
    """Modules that are not trained in edge round ``t``: the other factors of alternated LoRA."""
    if config.server.lora_rule != "lora-alternate":
        return frozenset()
    return at_rest(
        keys, t, method=config.method, policy=config.server.modules, period=config.tree.period
    )


def encoders_read(config: RunConfig) -> dict[str, str]:
    """Modalities that the run's tasks read -> name of the encoder."""
    read = {m for task in config.data.tasks for m in TASKS[task].inputs}
    return {m: name for m, name in config.encoder_names().items() if m in read}
