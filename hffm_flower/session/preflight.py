"""All that can be found wrong before any work starts."""

from __future__ import annotations

from dataclasses import dataclass

from hffm_flower.assets import asset_root
from hffm_flower.config import RunConfig
from hffm_flower.data import DATASETS, TASKS
from hffm_flower.errors import ConfigError, one_of
from hffm_flower.models.encoders import ENCODERS
from hffm_flower.modules import ModuleKey, ModuleKind
from hffm_flower.profile import NodeProfile
from hffm_flower.schedule import Schedule, Scope
from hffm_flower.topology import Clusters
from hffm_flower.tree import groups_of, plant


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will be.

    Attributes:
        profiles: Every device, by index.
        keys: Modules of each device, by index.
        schedule: Scope and period of every module.
        groups: Devices that average together.
    """

    profiles: tuple[NodeProfile, ...]
    keys: tuple[tuple[ModuleKey, ...], ...]
    schedule: Schedule
    groups: Clusters

    @property
    def idle(self) -> tuple[int, ...]:
        """Devices with nothing to train."""
        return tuple(p.index for p in self.profiles if p.idle)


def check(config: RunConfig) -> Plan:
    """Check settings, assets and data of a run, and say what it will be.

    Raises:
        ConfigError: A setting cannot work; the message names it and where it came from.
        AssetError: A packaged asset is missing or altered.
    """
    try:
        return _check(config)
    except ConfigError as error:
        raise config.locate(error) from error


def _check(config: RunConfig) -> Plan:
    from clients.resident import all_profiles
    from clients.spec import model_spec, resting
    from hffm_flower.accelerator import check_gpu_share, choose_device
    from hffm_flower.models.parts import module_keys
    from strategies.planner import check_exchange
    from strategies.planting import schedule_of
    from strategies.server_optimizers import OptimizerPolicy

    spec = model_spec(config)
    served = config.encoder_names()
    for task in config.data.tasks:
        one_of("task", task, TASKS, key="data.tasks")
        one_of("data set", TASKS[task].dataset, DATASETS, key="data.tasks")
        for modality in TASKS[task].required:
            if modality not in served:
                raise ConfigError(
                    f"no encoder serves modality {modality!r}, which task {task!r} requires; "
                    f"served: {', '.join(served)}; encoders: "
                    + ", ".join(f"{e.modality}={n}" for n, e in ENCODERS.items()),
                    key="model.encoders",
                )
    choose_device(config.train.device)
    check_gpu_share(config.simulation.gpus_per_actor)
    OptimizerPolicy(config.server.optimizer)
    check_exchange(config)
    network = plant(config)
    for asset in sorted(assets_of(config)):
        asset_root(asset)
    profiles = all_profiles(config)
    keys = tuple(module_keys(p.tasks, p.modalities, spec, p.experts) for p in profiles)
    if spec.tune:
        check_tails(config)
    every = {k for held in keys for k in held}
    schedule = schedule_of(config, every)
    rests = [resting(config, every, t) for t in range(1, config.rounds + 1)]
    if never := frozenset.intersection(*rests):
        raise ConfigError(
            f"{config.rounds} rounds are too few for lora-alternate: {min(never)} would never be "
            "trained; each factor has its turn for the module's period",
            key="rounds",
        )
    if config.train.head_epochs and not schedule.scoped(Scope.DEVICE):
        raise ConfigError(
            "no module stays on its device, so that none can be trained first; name some in "
            "server.modules, e.g. 'head/*=device'",
            key="train.head-epochs",
        )
    return Plan(profiles, keys, schedule, groups_of(config, network))


def check_tails(config: RunConfig) -> None:
    """Build the trained last blocks of every encoder once.

    Raises:
        ConfigError: Targets that match nothing, or a rank above a layer's size.
    """
    import torch

    from clients.resident import encoder_of
    from clients.spec import model_spec
    from hffm_flower.models.drawing import draw_part

    spec = model_spec(config)
    for modality in spec.tune:
        draw_part(
            ModuleKey(ModuleKind.ENCODER, modality), spec, modality=modality, rank=0,
            tails=lambda m: encoder_of(config, m, torch.device("cpu")).tail(),
        )  # fmt: skip


def assets_of(config: RunConfig) -> set[str]:
    """Names of the packaged assets that a run reads."""
    from hffm_flower.models.backbones import BACKBONES

    needed = {a for task in config.data.tasks for a in DATASETS[TASKS[task].dataset].assets}
    read = {m for task in config.data.tasks for m in TASKS[task].inputs}
    served = config.encoder_names().items()
    needed |= {a for m, name in served if m in read for a in ENCODERS[name].assets}
    return needed | set(BACKBONES[config.model.backbone].assets)
