"""Initial values of a model's parts: drawn from the run's seed, once per process."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from hffm_flower.errors import ModuleError
from hffm_flower.models.adapters import WIRINGS, ClsPrompt, LayerLora, Projector, SoftPrompt
from hffm_flower.models.encoders.tails import trained_tail
from hffm_flower.models.experts import ExpertModule
from hffm_flower.models.heads import HEADS
from hffm_flower.models.parts import CLS, ModelSpec
from hffm_flower.modules import ModuleKey, ModuleKind
from hffm_flower.seeding import stream_seed
from hffm_flower.tasks import TASKS

Tails = Callable[[str], nn.Module]
"""Modality -> the last blocks of its encoder, as they were pretrained."""

_drawn: dict[tuple[object, ...], nn.Module] = {}


def draw_part(
    key: ModuleKey, spec: ModelSpec, *, modality: str, rank: int, tails: Tails | None
) -> nn.Module:
    """A new part with its initial values, which depend on the run's seed and on ``key``.

    Args:
        key: Module; of divided LoRA factors, the name that both have.
        spec: The run's model.
        modality: What a projector or an encoder reads.
        rank: LoRA rank of the device.
        tails: Where the last blocks of encoders come from.

    Raises:
        ModuleError: An encoder is to be trained, and ``tails`` is missing.
    """
    name = (
        key, spec.backbone, spec.weights, spec.adapter, spec.adapter_rank, spec.lora, rank,
        tuple(spec.prompts.items()), spec.encoders.get(modality), spec.tune.get(modality),
        spec.seed, spec.adapter_layers, spec.wiring,
    )  # fmt: skip
    if name not in _drawn:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(spec.seed, "init", str(key)))
            _drawn[name] = _draw(key, spec, modality, rank, tails)
    return copy.deepcopy(_drawn[name])


def _draw(
    key: ModuleKey, spec: ModelSpec, modality: str, rank: int, tails: Tails | None
) -> nn.Module:
    width = spec.family.width
    made: nn.Module
    match key.kind:
        case ModuleKind.BACKBONE | ModuleKind.ADAPTER:
            made = _layer(key, spec, rank)
        case ModuleKind.EXPERT:
            made = ExpertModule(spec.layers, width, spec.adapter_rank)
        case ModuleKind.ENCODER:
            made = _tail(spec, modality, tails)
        case ModuleKind.PROMPT if key == CLS:
            made = ClsPrompt(width)
        case ModuleKind.PROMPT:
            made = SoftPrompt(spec.prompts[key.name.partition(".")[0]], width)
        case ModuleKind.PROJECTOR:
            stream = spec.stream(modality, key.name)
            made = Projector(stream.tokens, stream.width, width)
        case ModuleKind.HEAD:
            made = HEADS[TASKS[key.name].head](width, spec.head_size(key.name))
    return made


def _layer(key: ModuleKey, spec: ModelSpec, rank: int) -> nn.Module:
    """What is trained in one layer of the backbone."""
    family, lora = spec.family, spec.lora
    if not family.layers:
        return family.blocks()[key]()
    if spec.adapter != "lora":
        return WIRINGS[spec.wiring](family.width, spec.adapter_rank)
    projections = {n: family.projections[n] for n in lora.chosen(spec.backbone)}
    scale = lora.alpha * lora.scaling.factor(rank)
    made = LayerLora(projections, rank, scale=scale, drawn=lora.most)
    return _freeze_a(made) if lora.rule == "lora-ffa" else made


def _tail(spec: ModelSpec, modality: str, tails: Tails | None) -> nn.Module:
    """The trained last blocks of an encoder."""
    if tails is None:
        raise ModuleError(f"the encoder of {modality} is trained; its last blocks are not here")
    lora, tuning = spec.lora, spec.tune[modality]
    rslora = lora.scaling == "rslora"
    made = trained_tail(tails(modality), tuning, alpha=lora.alpha, rslora=rslora)
    return _freeze_a(made) if lora.rule == "lora-ffa" and tuning.rank else made


def _freeze_a(module: nn.Module) -> nn.Module:
    """Keep A as it was drawn, the same on every device."""
    for name, parameter in module.named_parameters():
        if "lora_A." in name:
            parameter.requires_grad_(False)
    return module
