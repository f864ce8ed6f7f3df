"""All that can be found wrong before any work starts."""

from __future__ import annotations

from fnmatch import fnmatchcase

from hffm_flower.assets import asset_root
from hffm_flower.config import RunConfig
from hffm_flower.data import DATASETS, TASKS
from hffm_flower.errors import ConfigError, one_of
from hffm_flower.models.encoders import (
    CHECKPOINT_ENCODERS,
    ENCODERS,
    CheckpointEncoder,
    Embeddings,
    encoder_type,
)
from hffm_flower.modules import ModuleKey, ModuleKind
from hffm_flower.schedule import Schedule, Scope
from hffm_flower.session.plan import Plan
from hffm_flower.tasks import spec_of
from hffm_flower.tree import groups_of, plant


def check(config: RunConfig, *, fits: bool = True) -> Plan:
    """Check settings, assets and data of a run, and say what it will be.

    Args:
        config: The run's settings.
        fits: Whether a model that is too large for the devices or for this machine is refused.

    Raises:
        ConfigError: A setting cannot work; the message names it and where it came from.
        AssetError: A packaged asset is missing or altered.
    """
    try:
        plan = _check(config)
        if fits:
            _check_memory(config, plan)
        return plan
    except ConfigError as error:
        raise config.locate(error) from error


def _check(config: RunConfig) -> Plan:
    from clients.resident import all_profiles, check_windows
    from clients.spec import model_spec, resting
    from hffm_flower.accelerator import check_gpu_share, choose_device
    from hffm_flower.models.heads import HEADS, ClassHead
    from hffm_flower.models.parts import module_keys
    from strategies.planner import check_exchange
    from strategies.planting import schedule_of
    from strategies.server_optimizers import OptimizerPolicy

    spec = model_spec(config)
    served = config.encoder_names()
    known = [f"{e.modality}={n}" for n, e in ENCODERS.items()]
    known += [f"{m}=hf:CHECKPOINT" for m in CHECKPOINT_ENCODERS]
    for task in config.data.tasks:
        asks = spec_of(task)
        one_of("data set", asks.dataset, DATASETS, key="data.tasks")
        one_of("head", asks.head, HEADS, key="data.tasks")
        if issubclass(HEADS[asks.head], ClassHead) and not asks.answers:
            raise ConfigError(
                f"task {task!r} has head {asks.head!r} and no answers to choose from",
                key="data.tasks",
            )
        for modality in asks.required:
            if modality not in served:
                raise ConfigError(
                    f"no encoder serves modality {modality!r}, which task {task!r} requires; "
                    f"served: {', '.join(served)}; encoders: " + ", ".join(known),
                    key="model.encoders",
                )
    if config.tree.memory_mib and (spec.adapter == "none" or not spec.layers):
        raise ConfigError(
            f"it is for what is trained in frozen layers, and adapter {spec.adapter!r} in backbone "
            f"{spec.backbone!r} trains nothing there, so that it would have no effect; leave it "
            "empty",
            key="tree.memory-mib",
        )
    choose_device(config.train.device)
    check_gpu_share(config.simulation.gpus_per_actor)
    OptimizerPolicy(config.server.optimizer)
    check_exchange(config)
    network = plant(config)
    for asset in sorted(assets_of(config)):
        asset_root(asset)
    check_checkpoints(config)
    profiles = all_profiles(config)
    check_windows(config)
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
    if config.server.lora_rule == "lora-alternate":
        _check_turns(schedule)
    own = len(schedule.scoped(Scope.DEVICE))
    if config.train.head_epochs and not 0 < own < len(every):
        raise ConfigError(
            f"{'every' if own else 'no'} module stays on its device, so that none can be trained "
            "ahead of the others; name some in server.modules, e.g. 'head/*=device'",
            key="train.head-epochs",
        )
    return Plan(profiles, keys, schedule, groups_of(config, network))


def _check_memory(config: RunConfig, plan: Plan) -> None:
    from clients.needs import large
    from hffm_flower.session.memory import check_budgets, check_machine, estimates, machine

    check_budgets(config, plan)
    if large(config):  # what is packaged is small, and every start would wait
        check_machine(machine(config), estimates(config, plan))


def _check_turns(schedule: Schedule) -> None:
    """Refuse factors that take turns and are averaged in different places."""
    for key, place in schedule.placements.items():
        other = ModuleKey(key.kind, f"{key.name[:-2]}.B")
        if key.name.endswith(".A") and place != schedule.placements.get(other, place):
            raise ConfigError(
                f"{key} and {other} have different places, so that both would change between two "
                "averages; lora-alternate needs one place for both",
                key="server.modules",
            )


def check_checkpoints(config: RunConfig) -> None:
    """Encode an item with every encoder of a checkpoint that the tasks use.

    Raises:
        ConfigError: A checkpoint cannot be used, or a precision is named and there is none.
    """
    import torch

    from clients.resident import encoder_of
    from clients.spec import encoders_read

    encoders = [encoder_of(config, m, torch.device("cpu")) for m in encoders_read(config)]
    for encoder in encoders:
        if isinstance(encoder, CheckpointEncoder | Embeddings):
            encoder.check()
    able = any(isinstance(encoder, CheckpointEncoder) for encoder in encoders)
    if config.model.encoder_precision != "fp32" and not able:
        raise ConfigError(
            f"{config.model.encoder_precision} is for encoders of checkpoints, and the tasks use "
            "none (hf:...); allowed: fp32",
            key="model.encoder-precision",
        )


def check_tails(config: RunConfig) -> None:
    """Build the trained last blocks of every encoder once.

    Raises:
        ConfigError: Targets that match nothing, or a rank above a layer's size.
    """
    import torch

    from clients.resident import encoder_of
    from clients.spec import model_spec
    from hffm_flower.models.drawing import draw_part
    from hffm_flower.models.encoders.tails import tunable

    spec = model_spec(config)
    cpu, unmatched = torch.device("cpu"), set(config.model.tune_targets)
    for modality, tuning in spec.tune.items():
        try:
            draw_part(
                ModuleKey(ModuleKind.ENCODER, modality), spec, modality=modality, rank=0,
                tails=lambda m: encoder_of(config, m, cpu).tail(),
            )  # fmt: skip
        except ConfigError as error:
            raise ConfigError(f"{modality}: {error}", key=error.key) from error
        if tuning.rank:
            layers = tunable(encoder_of(config, modality, cpu).tail())
            unmatched -= {p for p in unmatched if any(fnmatchcase(n, p) for n in layers)}
    if unmatched and any(tuning.rank for tuning in spec.tune.values()):
        raise ConfigError(
            f"{', '.join(sorted(unmatched))} matches no layer of the tuned encoders",
            key="model.tune-targets",
        )


def assets_of(config: RunConfig) -> set[str]:
    """Names of the packaged assets that a run reads."""
    from clients.spec import encoders_read
    from hffm_flower.models.backbones import backbone_of

    needed = {a for task in config.data.tasks for a in DATASETS[TASKS[task].dataset].assets}
    needed |= {a for m, name in encoders_read(config).items() for a in encoder_type(m, name).assets}
    return needed | set(backbone_of(config.model.backbone).assets)
