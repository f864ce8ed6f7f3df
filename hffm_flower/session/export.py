"""LoRA of a finished run as adapters that peft loads on the networks they are updates of."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

from clients.resident import Device, encoder_of
from clients.spec import model_spec
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError, OutputError
from hffm_flower.lora import compress, is_lora, layer_of, pairs
from hffm_flower.models.bases import Base, base_layer, base_of, whole_name
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.models.parts import FACTORS, LoraSpec, ModelSpec
from hffm_flower.modules import ModularState, ModuleKey, ModuleState, Tensor
from hffm_flower.runfiles import RunFiles
from hffm_flower.session.saved import config_of, device_state, parse_node, server_state

PREFIX: Final = "base_model.model."
"""Of the names in peft's files."""
HOST: Final = torch.device("cpu")


def export(folder: str | Path, out: str | Path, node: str | None = None) -> list[Path]:
    """Write a node's LoRA modules as folders of peft, one for each network, and a README.

    They have the products that the node's model has when `hffm_flower.load` reads it, with the
    scale of the run; directions that add nothing are left out, so ranks may be lower.

    Args:
        folder: The run's folder.
        out: Folder to write to, new or empty.
        node: As in `hffm_flower.load`.

    Returns:
        The adapters' folders, named by modality.

    Raises:
        OutputError: ``folder`` holds no such model, the node has no whole LoRA module, or
            ``out`` is not empty or not writable.
        ConfigError: The run has no LoRA, or no network that anyone else has.
    """
    files, target = RunFiles(Path(folder)), Path(out)
    config = config_of(files)
    spec = model_spec(config)
    _check(spec)
    _check_free(target)
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, factors in _factors(_model(files, config, node), node).items():
        for name, array in _compact(factors, spec).items():
            layer = layer_of(name)
            base, there = base_layer(key, layer, spec)
            found[base][there + name.removeprefix(layer)] = array
    bases = {name: base_of(name, spec) for name in sorted(found)}
    written = [target / base.modality for base in bases.values()]
    try:
        for path, (name, network) in zip(written, bases.items(), strict=True):
            _write(path, network, found[name], spec.lora)
        title = f"LoRA of {node or 'the cloud'}, run {files.root.resolve().name}"
        (target / "README.md").write_text(_readme(title, found, config), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{str(target)!r} is not writable: {error.strerror}") from error
    return written


def _check(spec: ModelSpec) -> None:
    """Refuse a run that has nothing to export."""
    if spec.adapter != "lora" and not any(t.rank for t in spec.tune.values()):
        tuned = " and model.tune trained all weights" if spec.tune else ""
        raise ConfigError(
            f"this run has no LoRA modules; model.adapter was {spec.adapter}{tuned}",
            key="model.adapter",
        )
    if spec.weights != "pretrained":
        raise ConfigError(
            f"model.weights was {spec.weights}: there is no network that others could load these "
            "adapters on; allowed: pretrained",
            key="model.weights",
        )


def _check_free(out: Path) -> None:
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise OutputError(f"{str(out)!r} cannot be read: {error.strerror}") from error
    if taken:
        raise OutputError(f"{str(out)!r} is not an empty folder; choose another one")


def _model(files: RunFiles, config: RunConfig, node: str | None) -> MultimodalModel:
    """A model with the node's LoRA modules, and maybe others."""
    tier, number = parse_node(node)
    if tier == "device":
        device = Device(config, number, HOST)
        model = device.model()
        model.load(device_state(files, config, device))
        return model
    spec, saved = model_spec(config), server_state(files, node)
    state = {key: tensors for key, tensors in saved.items() if is_lora(tensors)}
    _check_whole(state, saved, spec, node)
    model = MultimodalModel(
        spec, (), (), nn.Identity(), keys=state, tails=lambda m: encoder_of(config, m, HOST).tail()
    )
    model.load(state)
    return model


def _check_whole(
    state: ModularState, saved: ModularState, spec: ModelSpec, node: str | None
) -> None:
    """Refuse a node without LoRA, or with one factor where both are trained."""
    wanted = {
        ModuleKey(k.kind, f"{whole_name(k, spec)}{e}")
        for k in state for e in FACTORS[spec.lora.rule]
    }  # fmt: skip
    if not state or wanted != state.keys():
        held = ", ".join(map(str, saved)) or "none"
        lower = "" if spec.lora.rule == "lora-share-a" else "--node edge/0 or "
        raise OutputError(
            f"{node or 'the cloud'} has no whole LoRA modules after this run (its modules: "
            f"{held}); export a lower node, e.g. {lower}--node device/0"
        )


def _factors(model: MultimodalModel, node: str | None) -> dict[ModuleKey, ModuleState]:
    """LoRA module -> all of its factors, those that are never trained too."""
    found: dict[ModuleKey, ModuleState] = {}
    for key in model.keys:
        if is_lora(model.trained(key)):
            named = {
                name.replace(".default.", "."): parameter.detach().float().numpy()
                for name, parameter in model.part(key).named_parameters()
            }
            whole = ModuleKey(key.kind, whole_name(key, model.spec))
            found[whole] = {name: array for name, array in named.items() if layer_of(name)}
    if not found:
        held = ", ".join(map(str, model.keys)) or "none"
        raise OutputError(f"{node} has no LoRA modules (its modules: {held})")
    return found


def _compact(factors: ModuleState, spec: ModelSpec) -> ModuleState:
    """Factors without directions that add nothing; layers that add nothing at all as they are."""
    less = compress(factors, spec.lora.scaling)
    empty = {layer for layer, (A_RI, _) in pairs(less).items() if not len(A_RI)}
    return {n: factors[n] if layer_of(n) in empty else array for n, array in less.items()}


def _ranks(layers: ModuleState) -> dict[str, int]:
    """Layer -> its rank, in the order of the names."""
    return {layer: len(A_RI) for layer, (A_RI, _) in sorted(pairs(layers).items())}


def _write(folder: Path, base: Base, layers: ModuleState, lora: LoraSpec) -> None:
    """One folder of peft."""
    peft = importlib.import_module("peft")  # takes seconds
    ranks = _ranks(layers)
    most = max(ranks.values())
    config = peft.LoraConfig(
        base_model_name_or_path=base.origin,
        inference_mode=True,
        r=most,
        rank_pattern={layer: rank for layer, rank in ranks.items() if rank != most},
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        use_rslora=lora.scaling == "rslora",
        target_modules=list(ranks),
    )
    folder.mkdir(parents=True)
    config.save_pretrained(str(folder))
    arrays = {f"{PREFIX}{n}": np.ascontiguousarray(a) for n, a in layers.items()}
    save_file(arrays, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _readme(title: str, found: Mapping[str, ModuleState], config: RunConfig) -> str:
    """What is in the folders, and how it is loaded from beside this file."""
    spec = model_spec(config)
    root = "rank" if spec.lora.scaling == "standard" else "sqrt(rank)"
    lines = [
        f"# {title}", "",
        f"Method {config.method}, seed {config.seed}, rule {spec.lora.rule}; scale alpha / {root}, "
        f"alpha {spec.lora.alpha:g}. Only LoRA is here; projectors, prompts and heads stay in the "
        "run's own files.",
    ]  # fmt: skip
    for name in sorted(found):
        base, ranks = base_of(name, spec), _ranks(found[name])
        lines += [
            "", f"## {base.modality}/", "", f"Base: {base.about}.", "", "```python",
            *base.loading.splitlines(), "from peft import PeftModel",
            f'model = PeftModel.from_pretrained(base, "{base.modality}")', "```", "",
            "| layer | rank |", "|---|---|",
            *(f"| `{layer}` | {rank} |" for layer, rank in ranks.items()),
        ]  # fmt: skip
    return "\n".join([*lines, ""])
