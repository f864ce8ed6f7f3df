"""Finished runs with LoRA, made without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from clients.resident import encoder_of, frozen_layers
from clients.spec import model_spec
from hffm_flower.config import RunConfig
from hffm_flower.lora import A_SUFFIX, is_lora, layer_of
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.modules import ModularState, ModuleKey
from hffm_flower.runfiles import RunFiles

CPU = torch.device("cpu")
LORA = {
    "data__tasks": "emojivqa10", "model__adapter": "lora", "model__lora-targets": "*",
    "model__weights": "pretrained",
}  # fmt: skip


def settings(**changes: object) -> RunConfig:
    return RunConfig().with_values(**{**LORA, **changes})


def fresh(config: RunConfig) -> MultimodalModel:
    return MultimodalModel(
        model_spec(config), config.data.tasks, tuple(config.encoder_names()),
        frozen_layers(config, CPU), tails=lambda m: encoder_of(config, m, CPU).tail(),
    )  # fmt: skip


def shaken(state: ModularState, rank: int = 0) -> dict[ModuleKey, dict[str, Any]]:
    """LoRA with values that matter; those of the backbone cut to ``rank``, if there is one."""
    rng = np.random.default_rng(7)
    found = {}
    for key, tensors in state.items():
        found[key] = dict(tensors)
        for name, array in tensors.items() if is_lora(tensors) else ():
            a = name.endswith(A_SUFFIX)
            scale = 1 / np.sqrt(np.prod(array.shape[1:])) if a else 0.05
            values = (scale * rng.standard_normal(array.shape)).astype(np.float32)
            if rank and str(key).startswith("adapter"):
                values = values[:rank] if a else values[:, :rank]
            found[key][name] = np.ascontiguousarray(values)
    return found


def finished(config: RunConfig, folder: Path, state: ModularState) -> RunFiles:
    files = RunFiles.create(folder)
    files.save_cloud(state)
    saved = {"config": config.to_flwr(), "status": "finished", "reason": "", "summary": {}}
    files.write_result(saved)
    return files


def ranks_in(folder: Path) -> dict[str, int]:
    """Layer -> rank, from the tensors."""
    arrays = load_file(folder / "adapter_model.safetensors")
    named = {n.removeprefix("base_model.model."): a for n, a in arrays.items()}
    return {layer_of(n): len(a) for n, a in named.items() if n.endswith(A_SUFFIX)}
