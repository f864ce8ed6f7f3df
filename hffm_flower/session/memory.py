"""Memory, computing and traffic of each kind of device, before a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import psutil
from torch._subclasses.fake_tensor import FakeTensorMode

from clients.equipment import memories_mib
from clients.examples import MOST_KEPT
from clients.needs import CPU, SMALLER, data_bytes, hollow_model, step_of, with_lent
from clients.resident import PARTS, Device, encoder_of
from clients.shares import dataset_of
from clients.spec import encoders_read, model_spec
from hffm_flower.accelerator import choose_device, memory_bytes
from hffm_flower.assignment import memory_mib
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from hffm_flower.models.encoders import CheckpointEncoder
from hffm_flower.models.footprint import Footprint, sent_bytes
from hffm_flower.modules import ModuleKind
from hffm_flower.profile import NodeProfile
from hffm_flower.schedule import METHODS
from hffm_flower.session.plan import Plan

GIB: Final = 2**30


@dataclass(frozen=True, slots=True)
class Estimate:
    """What devices with the same modules need.

    Attributes:
        devices: Which these are, by index.
        modalities: What they collect.
        tasks: What they train.
        rank: Of their LoRA; 0: none.
        experts: How many they hold.
        step: Of the task that needs most.
        tokens: Inputs and targets of training and both tests, of the one with most of them, in
            memory [byte].
        every: The same of all of these devices [byte].
        cache: Of the one with most, on disk [byte].
        message: Modules that a device is sent, and sends, in an edge round [byte].
        flops: Of an edge round of the one with most examples [flop].
        seconds: That takes at ``radio.device-gflop-s`` [s].
    """

    devices: tuple[int, ...]
    modalities: tuple[str, ...]
    tasks: tuple[str, ...]
    rank: int
    experts: int
    step: Footprint
    tokens: int
    every: int
    cache: int
    message: int
    flops: float
    seconds: float

    @property
    def total(self) -> int:
        """Memory of a device in training, without its process [byte]."""
        return self.step.total + self.tokens


def estimates(config: RunConfig, plan: Plan) -> list[Estimate]:
    """One estimate for each kind of device, in the order of their first devices.

    Where all data are pooled there is one, of the model that is trained on them.
    """
    pooled = METHODS[config.method].pooled
    kinds: dict[tuple[object, ...], list[NodeProfile]] = {}
    for profile in plan.profiles:
        if not profile.idle:
            has = profile.modalities, tuple(profile.tasks), profile.rank, len(profile.experts)
            kinds.setdefault(() if pooled else has, []).append(profile)
    return [_estimate(config, plan, profiles, pooled=pooled) for profiles in kinds.values()]


def _estimate(
    config: RunConfig, plan: Plan, profiles: list[NodeProfile], *, pooled: bool
) -> Estimate:
    first, spec = _joined(config, profiles) if pooled else profiles[0], model_spec(config)
    held = profiles if pooled else profiles[:1]
    keys = tuple(sorted({k for p in held for k in plan.keys[p.index]}))
    trained = with_lent(keys, first, spec)
    together = sum if pooled else max
    devices = [Device(config, p.index, CPU) for p in profiles]
    steps = {
        task: step_of(
            config, first, task, keys=trained, modalities=first.modalities,
            dataset=dataset_of(config, task), examples=together(
                max(len(d.rows(task, part)) for part in PARTS)
                for d in devices if task in d.profile.tasks
            ),
        )
        for task in first.tasks
    }  # fmt: skip
    flops = together(sum(steps[t].flops * n for t, n in p.tasks.items()) for p in profiles)
    flops *= config.train.local_epochs
    if config.train.local_steps:
        hardest = max(step.flops for step in steps.values())
        flops = hardest * config.train.batch_size * config.train.local_steps
    found = [data_bytes(device) for device in devices]
    tokens, every = max(sum(sizes) for sizes, _ in found), sum(sum(sizes) for sizes, _ in found)
    if pooled:  # each split in parts and in one, for a moment; then the next
        train, iid, skewed = (sum(sizes[i] for sizes, _ in found) for i in range(3))
        tokens = every = max(2 * train, train + 2 * iid, train + iid + 2 * skewed)
    return Estimate(
        devices=tuple(p.index for p in profiles),
        modalities=first.modalities,
        tasks=tuple(first.tasks),
        rank=first.rank,
        experts=len(first.experts),
        step=max(steps.values(), key=lambda step: step.total),
        tokens=tokens,
        every=every,
        cache=together(disk for _, disk in found),
        message=0
        if pooled
        else sent_bytes(hollow_model(config, first, keys, FakeTensorMode()), keys),
        flops=flops,
        seconds=flops / (config.radio.device_gflop_s * 1e9),
    )


def _joined(config: RunConfig, profiles: Sequence[NodeProfile]) -> NodeProfile:
    """One device with all that ``profiles`` have."""
    counts = {t: sum(p.tasks.get(t, 0) for p in profiles) for t in config.data.tasks}
    return NodeProfile(
        index=profiles[0].index,
        modalities=tuple(sorted({m for p in profiles for m in p.modalities})),
        tasks={task: count for task, count in counts.items() if count},
        rank=max(p.rank for p in profiles) and model_spec(config).lora.most,
        experts=tuple(sorted({j for p in profiles for j in p.experts})),
    )


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine has for a run.

    Attributes:
        memory: Of the CPU or of the accelerator [byte].
        process: What a process takes before it trains: libraries and checkpoints' encoders [byte].
        actors: Processes that train at once.
    """

    memory: int
    process: int
    actors: int

    def needed(self, each: Sequence[Estimate]) -> int:
        """Memory of a run whose devices need ``each`` [byte]."""
        most = max((e.total for e in each), default=0)
        return self.actors * (self.process + most + self.kept(each))

    @staticmethod
    def kept(each: Sequence[Estimate]) -> int:
        """Examples of other devices that a process keeps, since it plays any of them [byte]."""
        others = sum(e.every for e in each) - max((e.tokens for e in each), default=0)
        return min(MOST_KEPT, others)


def machine(config: RunConfig) -> Machine:
    """This machine, as the run will use it; the process is measured on this one, after `check`."""
    on = choose_device(config.train.device)
    used = [encoder_of(config, m, CPU) for m in encoders_read(config)]
    encoders = sum(e.weights_bytes for e in used if isinstance(e, CheckpointEncoder))
    actors = config.simulation.actors or psutil.cpu_count() or 1
    actors = 1 if config.method == "central" else min(actors, config.tree.devices)
    libraries = 0 if on.type == "cuda" else psutil.Process().memory_info().rss
    return Machine(memory_bytes(on), libraries + encoders, actors)


def check_budgets(config: RunConfig, plan: Plan) -> None:
    """Refuse bottlenecks that devices have no memory to train.

    Raises:
        ConfigError: The message says how many, and what is short.
    """
    spec = model_spec(config)
    if not config.tree.memory_mib or spec.adapter != "bottleneck" or not spec.layers:
        return
    model = next((p for p in plan.profiles if not p.idle), None)
    if model is None:
        return
    keys = [k for k in plan.keys[model.index] if k.kind is ModuleKind.ADAPTER]
    made = hollow_model(config, model, keys, FakeTensorMode())
    wanted = memory_mib(sent_bytes(made, tuple(keys)) // 4)
    memories = memories_mib(config)
    short = [p.index for p in plan.profiles if not p.idle and memories[p.index] < wanted]
    if short:
        raise ConfigError(
            f"training the adapters takes {wanted:.4g} MiB; {len(short)} of "
            f"{len(plan.profiles) - len(plan.idle)} devices have less, the least "
            f"{memories[short].min():.4g} MiB; narrower: model.adapter-rank, fewer: "
            "model.adapter-layers",
            key="tree.memory-mib",
        )


def check_machine(here: Machine, found: Sequence[Estimate]) -> None:
    """Refuse a run that does not fit into this machine.

    Args:
        here: What there is.
        found: What the devices need.

    Raises:
        ConfigError: The message says what is needed, by whom, and what there is.
    """
    if (needed := here.needed(found)) <= here.memory:
        return
    alone = dataclasses.replace(here, actors=1)
    over = sum(len(e.devices) for e in found if alone.needed([e]) > here.memory)
    raise ConfigError(
        f"{here.actors} processes that train at once need {needed / GIB:.3g} GiB, this machine has "
        f"{here.memory / GIB:.3g}; {over} of {sum(len(e.devices) for e in found)} devices do not "
        f"fit even alone; hffm plan-memory shows what takes it; {SMALLER}, simulation.actors",
        key="model.backbone",
    )
