"""A finished run, read back: a model that predicts, and its figures computed again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from clients.evaluator import tally
from clients.resident import Device, encoder_of, frozen_layers
from clients.spec import model_spec
from hffm_flower.accelerator import choose_device
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError, OutputError, one_of
from hffm_flower.models.backbones import backbone_of
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.models.parts import task_modules
from hffm_flower.modules import ModularState, ModuleKey, ModuleKind
from hffm_flower.records import read_state
from hffm_flower.result import summarise, task_facts
from hffm_flower.runfiles import MODEL, RunFiles
from hffm_flower.schedule import METHODS
from hffm_flower.session.predictor import Predictor
from hffm_flower.session.preflight import check
from hffm_flower.tasks import TASKS, difference


def load(folder: str | Path, node: str | None = None) -> Predictor:
    """A model of a finished run, ready to predict.

    Args:
        folder: The run's folder.
        node: ``None`` for the cloud's model, ``"edge/3"`` for an edge's, ``"device/7"`` for
            a device's: its edge's modules and its own, for its modalities and tasks.

    Raises:
        OutputError: The folder holds no such model.
        ConfigError: ``node`` is no such name.
    """
    files = RunFiles(Path(folder))
    config = config_of(files)
    on = choose_device(config.train.device)
    tier, number = parse_node(node)
    if tier == "device":
        device = Device(config, number, on)
        model = device.model()
        model.load(device_state(files, config, device))
        return Predictor(config, model, on)
    state = server_state(files, node)
    readable = {ModuleKey(ModuleKind.PROJECTOR, s) for s in native_streams(config)} | state.keys()
    spec, served = model_spec(config), dict[str, set[str]]()
    for key in state:
        if key.kind is ModuleKind.HEAD:
            has = {
                m for m, s in TASKS[key.name].inputs.items()
                if m in config.encoder_names()
                and (m == TASKS[key.name].target or ModuleKey(ModuleKind.PROJECTOR, s) in readable)
            }  # fmt: skip
            experts = [int(k.name) for k in state if k.kind is ModuleKind.EXPERT]
            needed = task_modules(key.name, has, spec, experts)
            if has.issuperset(TASKS[key.name].required) and set(needed) <= state.keys():
                served[key.name] = has - {TASKS[key.name].target}
    if not served:
        held = ", ".join(map(str, state)) or "none"
        raise OutputError(
            f"{node or 'the cloud'} has no whole model after this run (its modules: {held}); "
            "load a lower node, e.g. node='edge/0' or node='device/0'"
        )
    modalities = {m for has in served.values() for m in has}
    frozen = frozen_layers(config, on)
    model = MultimodalModel(
        spec, tuple(served), modalities, frozen,
        keys=state, tails=lambda m: encoder_of(config, m, on).tail(),
    ).to(on)  # fmt: skip
    model.load(state)
    return Predictor(config, model, on)


def parse_node(node: str | None) -> tuple[str, int]:
    """Tier and number of a node; the cloud's number is 0.

    Raises:
        ConfigError: ``node`` is not of the form cloud, edge/N or device/N.
    """
    tier, _, number = str(node or "cloud").partition("/")
    one_of("node", tier, ("cloud", "edge", "device"))
    if (tier == "cloud") == bool(number) or (number and number != str(_index(number))):
        raise ConfigError(f"node {node!r} is not of the form cloud, edge/N or device/N")
    return tier, int(number or 0)


def _index(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() else -1


def server_state(files: RunFiles, node: str | None) -> ModularState:
    """Modules of the cloud (None) or of an edge.

    Raises:
        OutputError: The folder has none.
    """
    tier, number = parse_node(node)
    path = files.root / MODEL if tier == "cloud" else files.edge(number)
    if not path.exists():
        raise OutputError(f"{str(files.root)!r} has no model of {node or 'the cloud'}")
    return read_state(path)


def device_state(files: RunFiles, config: RunConfig, device: Device) -> ModularState:
    """Modules of a device at the end: its edge's, with its own on top."""
    own = files.device(device.profile.index)
    state = dict(_edge_state(files, config, device))
    if own.exists():
        state |= read_state(own)
    return {k: v for k, v in state.items() if k in device.model().keys}


def recompute(folder: str | Path) -> tuple[dict[str, object], dict[str, object]]:
    """Figures of a finished run, computed again from its saved models.

    Returns:
        The summary from the models, and the one in ``result.json``.

    Raises:
        OutputError: The run is not finished: its last models have no figures.
    """
    files = RunFiles(Path(folder))
    saved = files.result()
    if saved["status"] != "finished":
        raise OutputError(
            f"the run in {str(files.root)!r} is {saved['status']}, not finished: "
            f"{saved['reason'] or 'no reason given'}"
        )
    config = config_of(files)
    expected = _table(_table(saved["summary"]).get("expected"))
    plan = check(config, fits=False)
    on = choose_device(config.train.device)
    torch.set_num_threads(1)
    reports = files.rounds()
    if not reports:
        raise OutputError(f"{str(files.root)!r}: rounds.jsonl holds no edge round")
    *earlier, final = reports
    last = replace(final, scores={})
    cloud = files.cloud()
    if final.t != config.rounds:
        raise OutputError(f"{str(files.root)!r}: rounds.jsonl ends with edge round {final.t}")
    for index in range(config.tree.devices):
        tiers = [t for t, devices in sorted(final.evaluated.items()) if index in devices]
        if not tiers:
            continue
        device = Device(config, index, on)
        base = device_state(files, config, device)
        for tier in tiers:
            model = device.model()
            model.load(base)
            if tier == "cloud":
                model.load({k: v for k, v in cloud.items() if k in model.keys})
            found = tally(
                model, device.train_data(), device.tests(), batch_size=config.train.batch_size
            )
            for split, task, score in found:
                last.add_score(tier, split, task, score)
    tasks = {
        task: replace(facts, expected=expected.get(task, facts.expected))
        for task, facts in task_facts(config.data.tasks, plan.profiles).items()
    }
    summary = saved["summary"]
    assert isinstance(summary, Mapping)
    return summarise([*earlier, last], tasks, cycle=plan.schedule.cycle()), dict(summary)


def native_streams(config: RunConfig) -> tuple[str, ...]:
    """Streams that the run's backbone reads without a projector."""
    served = set(config.encoder_names().values())
    native = backbone_of(config.model.backbone).native_streams
    return tuple(stream for stream, encoder in native.items() if encoder in served)


def _edge_state(files: RunFiles, config: RunConfig, device: Device) -> ModularState:
    if METHODS[config.method].pooled:
        return files.cloud()
    groups = files.result()["clusters"]
    assert isinstance(groups, list)
    edge = next(e for e, group in enumerate(groups) if device.profile.index in group)
    path = files.edge(edge)
    return read_state(path) if path.exists() else {}


def config_of(files: RunFiles) -> RunConfig:
    """Settings of a run, without its folders.

    Raises:
        OutputError: The folder holds no finished run, or its tasks are others here.
    """
    saved = files.result()
    flat, told = saved["config"], saved.get("tasks", {})
    assert isinstance(flat, Mapping)
    assert isinstance(told, Mapping)
    if odd := difference(told):
        raise OutputError(f"the run in {str(files.root)!r} had other tasks: {odd}")
    return RunConfig.from_flwr({**flat, "paths.state": "", "paths.out": ""})


def _table(value: object) -> Mapping[str, int]:
    return value if isinstance(value, Mapping) else {}
