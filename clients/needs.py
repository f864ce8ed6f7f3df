"""What a device needs to train: its model's steps, played without content, and its examples."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from clients.resident import PARTS, Device, encoder_of
from clients.spec import model_spec
from hffm_flower.accelerator import memory_bytes
from hffm_flower.config import RunConfig
from hffm_flower.data.dataset import Dataset, Split
from hffm_flower.errors import ConfigError
from hffm_flower.models.encoders import PREFIX, Encoder
from hffm_flower.models.encoders.encoder import Stream
from hffm_flower.models.footprint import Footprint, footprint
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.models.parts import ModelSpec, behind_prefix, streams_of
from hffm_flower.modules import ModuleKey, ModuleKind
from hffm_flower.profile import NodeProfile
from hffm_flower.tasks import TASKS

CPU: Final = torch.device("cpu")
MIB: Final = 2**20
SMALLER: Final = (
    "smaller: train.batch-size, train.checkpointing = true, model.adapter-layers, "
    "model.backbone-precision = bf16"
)

_found: dict[tuple[object, ...], Footprint] = {}


def large(config: RunConfig) -> bool:
    """Whether anything comes from a checkpoint; what is packaged is small."""
    names = config.model.backbone, *config.encoder_names().values()
    return any(name.startswith(PREFIX) for name in names)


def check_room(device: Device) -> None:
    """Refuse a model from checkpoints that does not fit into the memory of this machine.

    Raises:
        ConfigError: The message says what is needed, and what there is.
    """
    config, own = device.config, device.profile
    if own.idle or not large(config):
        return
    keys = with_lent(device.keys(), own, device.spec)
    steps = [
        step_of(
            config, own, task, keys=keys, modalities=device.held(task),
            dataset=device.dataset(task), examples=max(len(device.rows(task, p)) for p in PARTS),
        ).total
        for task in own.tasks
    ]  # fmt: skip
    data, there = sum(data_bytes(device)[0]), memory_bytes(device.on)
    if max(steps) + data > there:
        raise ConfigError(
            f"device {own.index} needs {max(steps) / MIB:.4g} MiB for a training step and "
            f"{data / MIB:.4g} MiB for its examples, but has {there / MIB:.4g} MiB; {SMALLER}",
            key="model.backbone",
        )


def data_bytes(device: Device) -> tuple[list[int], int]:
    """A device's inputs and targets of each of `PARTS` in memory, and all on disk [byte]."""
    sizes, disk = [0] * len(PARTS), 0
    for task in device.profile.tasks:
        shapes, cached = _streams(task, device.spec, _encoders(device.config, device.held(task)))
        read = sum(s.tokens * (4 * s.width + 1) for s in shapes.values())
        train, *tests = (device.rows(task, part) for part in PARTS)
        for i, rows in enumerate((train, *tests)):
            if len(rows):
                found = device.dataset(task)
                target = _targets(device.spec, task, found, 1, split="test" if i else "train")
                sizes[i] += len(rows) * (read + target.nbytes)
        distinct = len(train) + len(np.union1d(*tests))
        disk += distinct * sum(shapes[n].tokens * (2 * shapes[n].width + 1) for n in cached)
    return sizes, disk


def step_of(
    config: RunConfig,
    profile: NodeProfile,
    task: str,
    *,
    keys: tuple[ModuleKey, ...],
    modalities: Collection[str],
    dataset: Dataset,
    examples: int,
) -> Footprint:
    """A step of one task of a device, found once per process.

    Args:
        config: The run's settings.
        profile: What the device is.
        task: One of its tasks.
        keys: Modules that it trains.
        modalities: What its examples of the task have.
        dataset: Where they are from.
        examples: How many there are, of training or of a test.
    """
    spec, known = model_spec(config), _found
    shapes, _ = _streams(task, spec, _encoders(config, modalities))
    train = config.train
    targets = _targets(spec, task, dataset, min(train.batch_size, examples))
    layout = (
        repr(dataclasses.replace(spec, seed=0)), train.precision, train.checkpointing,
        TASKS[task].head, spec.head_size(task), tuple(shapes.items()), targets.shape,
        tuple(m for m in profile.modalities if m in TASKS[task].fused), profile.rank,
        sum(k.kind is ModuleKind.EXPERT for k in keys), tuple(_layout(k, spec) for k in keys),
    )  # fmt: skip
    if layout not in known:
        known[layout] = footprint(
            lambda mode: hollow_model(config, profile, keys, mode), task, streams=shapes,
            targets=targets, precision=train.precision, recompute=train.checkpointing,
        )  # fmt: skip
    return known[layout]


def with_lent(
    keys: Iterable[ModuleKey], profile: NodeProfile, spec: ModelSpec
) -> tuple[ModuleKey, ...]:
    """Modules ``keys`` of a device, with as many experts more as it is lent."""
    others = (j for j in range(spec.experts) if j not in profile.experts)
    lent = itertools.islice(others, profile.lent)
    more = {ModuleKey(ModuleKind.EXPERT, str(j)) for j in lent}
    return tuple(sorted({*keys, *more}))


def hollow_model(
    config: RunConfig, profile: NodeProfile, keys: Iterable[ModuleKey], mode: FakeTensorMode
) -> MultimodalModel:
    """The device's model, with a backbone of no content."""
    spec = model_spec(config)
    tasks = config.data.tasks if spec.whole else tuple(profile.tasks)
    with mode:
        frozen = spec.family.load_frozen("random", 0, spec.precision)
    return MultimodalModel(
        spec, tasks, profile.modalities, frozen, keys=tuple(keys), rank=profile.rank,
        tails=lambda m: encoder_of(config, m, CPU).tail(),
    )  # fmt: skip


def _encoders(config: RunConfig, modalities: Collection[str]) -> dict[str, Encoder]:
    known = model_spec(config).encoders
    return {m: encoder_of(config, m, CPU) for m in modalities if m in known}


def _streams(
    task: str, spec: ModelSpec, encoders: Mapping[str, Encoder]
) -> tuple[dict[str, Stream], list[str]]:
    """Shapes of a task's streams as they go into the model, and which of them are cached."""
    held = streams_of(task, encoders)
    shapes = {s: encoders[m].streams[s] for s, m in held.items()}
    prefixed = behind_prefix(task, tuple(encoders), spec)
    return shapes, [s for s, m in held.items() if prefixed or encoders[m].cacheable]


def _targets(
    spec: ModelSpec, task: str, dataset: Dataset, count: int, *, split: Split = "train"
) -> torch.Tensor:
    """Targets of ``count`` examples in their form: mean tokens where something is to be found."""
    targets = torch.from_numpy(dataset.targets(split, np.zeros(count, dtype=np.int64)))
    if TASKS[task].target:
        return torch.zeros(*targets.shape, spec.head_size(task))
    return targets


def _layout(key: ModuleKey, spec: ModelSpec) -> str:
    """What matters of a module: heads of the same size have the same tensors."""
    if key.kind is not ModuleKind.HEAD:
        return "" if key.kind is ModuleKind.EXPERT else str(key)
    return f"{TASKS[key.name].head} {spec.head_size(key.name)}"
