"""What a process keeps between messages: frozen weights, open data sets, the partition.

A Ray actor or a long-lived node answers many messages, for many devices; what is loaded
here is loaded once per process. Nothing in it is ever changed, so any process can play
any device with the same result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clients.equipment import equipped, expert_mib, memories_mib, ranks
from clients.examples import ExampleMemory, TaskData, load_task
from clients.shares import contents, dataset_of, drawn_partition, partition_file, shared_partition
from clients.spec import model_spec, resting, tunings_of
from hffm_flower.config import RunConfig
from hffm_flower.data import TASKS
from hffm_flower.data.dataset import Dataset, Indices, Item
from hffm_flower.data.own import OwnData, read_own
from hffm_flower.errors import ConfigError
from hffm_flower.models.backbones import backbone_of
from hffm_flower.models.encoders import (
    Encoder,
    FeatureCache,
    Precision,
    Weights,
    encoder_type,
)
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.models.parts import behind_prefix, module_keys
from hffm_flower.models.prefix import FrozenPrefix
from hffm_flower.modules import ModuleKey, ModuleKind
from hffm_flower.profile import NodeProfile


@lru_cache(maxsize=16)
def _encoder(
    modality: str,
    name: str,
    precision: Precision,
    weights: Weights,
    seed: int,
    device: torch.device,
    cut: int,
) -> Encoder:
    return encoder_type(modality, name, precision=precision)(weights, seed, device, cut)


@lru_cache(maxsize=4)
def _frozen(
    backbone: str, weights: Weights, seed: int, precision: Precision, device: torch.device
) -> nn.Module:
    return backbone_of(backbone).load_frozen(weights, seed, precision).to(device)


@lru_cache(maxsize=4)
def own_data(config: RunConfig, file: str, run_id: int) -> OwnData:
    """`open_own`, once per process and run ``run_id``."""
    return open_own(config, Path(file))


def open_own(config: RunConfig, file: Path) -> OwnData:
    """What the TOML file of a device names, read and checked.

    Raises:
        ConfigError: It cannot be used; the message names setting, value and what is allowed.
    """
    model_spec(config)
    own = read_own(file, tasks=config.data.tasks, served=config.encoder_names(), seed=config.seed)
    for task, data in own.tasks.items():
        for modality, items in data.inputs.items():
            if why := _unfit(config, modality, items[0]):
                raise own.refuse(ConfigError(why, key=f"data.{task}.window"))
    return own


def check_windows(config: RunConfig) -> None:
    """Encode one window of every prepared task that has some.

    Raises:
        ConfigError: The run's encoder does not read windows of that shape.
    """
    for task in config.data.tasks:
        spec, served = TASKS[task], config.encoder_names()
        for modality in sorted({*spec.inputs} & {*served}) if spec.content else ():
            (item,) = dataset_of(config, task).items(modality, "train", [0])
            if why := _unfit(config, modality, item):
                raise ConfigError(f"task {task!r}: {why}", key="data.tasks")


def _unfit(config: RunConfig, modality: str, item: Item) -> str:
    """Why the run's encoder cannot read a window; empty if it can, or if it is no window."""
    window = item.load()
    if not isinstance(window, np.ndarray):
        return ""
    try:
        encoder_of(config, modality, torch.device("cpu")).encode([item])
    except (TypeError, ValueError, RuntimeError) as error:
        return f"windows {list(window.shape)} (samples, channels) do not fit: {error}"
    return ""


PARTS: Final = ("train", "iid", "skewed")
"""Of a device's examples: training, and its shards of the test sets."""

_examples = ExampleMemory()


def release_examples() -> None:
    """Let go of the examples that this process has kept."""
    _examples.clear()


class Device:
    """One device of a run: its profile, its model and its data, as this process sees them.

    Args:
        config: The run's settings.
        index: Index of the device.
        on: Where its tensors live.
        own: Data of its own, in place of its share of the packaged data.
    """

    def __init__(
        self, config: RunConfig, index: int, on: torch.device, own: OwnData | None = None
    ) -> None:
        if not 0 <= index < config.tree.devices:
            raise ConfigError(
                f"device index {index} is not in 0..{config.tree.devices - 1}", key="tree.devices"
            )
        self.config, self.on, self.own = config, on, own
        self.spec = model_spec(config)
        self.profile = own_profile(config, own, index) if own else all_profiles(config)[index]

    def model(self, sent: Iterable[ModuleKey] = ()) -> MultimodalModel:
        """A model with the device's modules at their initial values.

        Args:
            sent: Modules that have come; experts among them that are not its own are lent to it.
        """
        lent = {k for k in sent if k.kind is ModuleKind.EXPERT}
        own, spec = self.profile, self.spec
        tasks = self.config.data.tasks if spec.whole and own.tasks else tuple(own.tasks)
        frozen = frozen_layers(self.config, self.on)
        return MultimodalModel(
            spec, tasks, own.modalities, frozen, keys=self.keys() | lent,
            rank=own.rank, tails=lambda m: encoder_of(self.config, m, self.on).tail(),
        ).to(self.on)  # fmt: skip

    def keys(self) -> set[ModuleKey]:
        """Modules that the device holds."""
        own, spec = self.profile, self.spec
        if spec.whole and own.tasks:
            return set(module_keys(self.config.data.tasks, tuple(spec.encoders), spec))
        return {
            key for task in own.tasks
            for key in module_keys([task], self.held(task), spec, own.experts)
        }  # fmt: skip

    def resting(self, t: int) -> frozenset[ModuleKey]:
        """The device's modules that are not trained in edge round ``t``."""
        return resting(self.config, self.keys(), t)

    def train_data(self) -> list[TaskData]:
        """Training examples, one part per task."""
        return self._kept("train")

    def test_data(self, split: str) -> list[TaskData]:
        """Shards of the test sets, ``iid`` or ``skewed``, one part per task.

        Of data of its own, a device has one test set, which is both.
        """
        return self._kept(split)

    def tests(self) -> dict[str, list[TaskData]]:
        """`test_data` of both splits."""
        return {split: self.test_data(split) for split in ("iid", "skewed")}

    def _kept(self, part: str) -> list[TaskData]:
        """Examples as this process has them in memory, loaded if it has not."""
        if self.own is not None:
            return self._load(part)
        config = self.config
        key = (config.data, config.model, config.seed, config.tree.devices, config.cache_dir(),
               self.profile.index, self.on, part, contents(config.data.tasks))  # fmt: skip
        return _examples.get(key, lambda: self._load(part))

    def dataset(self, task: str) -> Dataset:
        """Where the device's examples of ``task`` are from."""
        return self.own.tasks[task] if self.own else dataset_of(self.config, task)

    def rows(self, task: str, part: str) -> Indices:
        """Its examples of ``task`` there, of one of `PARTS`."""
        if self.own:
            return self.own.tasks[task].rows("train" if part == "train" else "test")
        drawn = shared_partition(self.config)
        shards = {"train": drawn.train, "iid": drawn.test_iid, "skewed": drawn.test_skewed}
        return shards[part][task][self.profile.index]

    def held(self, task: str) -> tuple[str, ...]:
        """Modalities of the device's examples of ``task``."""
        return tuple(self.own.tasks[task].inputs) if self.own else self.profile.modalities

    def _load(self, part: str) -> list[TaskData]:
        encoders = {m: encoder_of(self.config, m, self.on) for m in self.profile.modalities}
        cache = FeatureCache(self.config.cache_dir() / "features")
        loaded = []
        for task in self.profile.tasks:
            indices = self.rows(task, part)
            if len(indices):
                target = TASKS[task].target
                finder = encoder_of(self.config, target, self.on, whole=True) if target else None
                data = load_task(
                    task, self.dataset(task), split="train" if part == "train" else "test",
                    indices=indices, encoders=encoders, modalities=self.held(task), cache=cache,
                    finder=finder, prefix=prefix_of(self.config, task, self.held(task), self.on),
                )  # fmt: skip
                loaded.append(data.to(self.on))
        return loaded


def frozen_layers(config: RunConfig, on: torch.device) -> nn.Module:
    """The backbone's frozen part, loaded once per process."""
    model = config.model
    seed, precision = _weight_seed(config), model.backbone_precision
    return _frozen(model.backbone, model.weights, seed, precision, on)


def encoder_of(
    config: RunConfig, modality: str, on: torch.device, *, whole: bool = False
) -> Encoder:
    """The encoder of a modality, loaded once per process; ``whole``: with last blocks tuned too."""
    name, tuning = config.encoder_names()[modality], tunings_of(config).get(modality)
    cut = tuning.blocks if tuning and not whole else 0
    model, seed = config.model, _weight_seed(config)
    return _encoder(modality, name, model.encoder_precision, model.weights, seed, on, cut)


def prefix_of(
    config: RunConfig, task: str, modalities: Collection[str], on: torch.device
) -> FrozenPrefix | None:
    """The frozen layers that examples of ``task`` pass once and for all; None: they pass none."""
    spec = model_spec(config)
    held = [m for m in modalities if m in spec.encoders]
    if not behind_prefix(task, held, spec):
        return None
    return FrozenPrefix(
        task, spec, encoders={m: encoder_of(config, m, on) for m in held},
        frozen=frozen_layers(config, on), seed=_weight_seed(config),
    )  # fmt: skip


def _weight_seed(config: RunConfig) -> int:
    """Random frozen weights depend on the run's seed; pretrained ones on nothing."""
    return config.seed if config.model.weights == "random" else 0


def all_profiles(config: RunConfig) -> tuple[NodeProfile, ...]:
    """Profiles of all devices of a run, by index."""
    return _profiles(partition_file(config), config)


@lru_cache(maxsize=8)
def _profiles(path: Path, config: RunConfig) -> tuple[NodeProfile, ...]:
    return equipped(config, model_spec(config), drawn_partition(path, config).profiles)


def own_profile(config: RunConfig, own: OwnData, index: int) -> NodeProfile:
    """Profile of a device with data of its own.

    Others know nothing of its tasks, so its experts are not chosen by them: it holds as many
    as its memory does, from its index on.
    """
    spec, profile = model_spec(config), own.profile(index)
    if spec.adapter == "lora":
        return dataclasses.replace(profile, rank=ranks(config, spec)[index])
    if spec.adapter != "experts":
        return profile
    lent, most = config.model.experts_lent, config.model.experts_held or spec.experts
    room = int(min(memories_mib(config)[index] / expert_mib(spec), spec.experts + lent))
    lent = lent if room > lent else 0
    held = sorted((index + j) % spec.experts for j in range(min(most, room - lent)))
    return dataclasses.replace(profile, experts=tuple(held), lent=lent)


def label_counts(config: RunConfig, task: str) -> NDArray[np.int64]:
    """Training examples of ``task`` by device and label ``[devices, labels]``."""
    labels = dataset_of(config, task).labels("train")
    shards = shared_partition(config).train[task]
    return np.stack([np.bincount(labels[s], minlength=int(labels.max()) + 1) for s in shards])
