"""Memory, computing and traffic of each kind of device, before a run."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from clients.equipment import memories_mib
from clients.examples import MOST_KEPT
from clients.resident import encoder_of
from clients.shares import dataset_of, shared_partition
from clients.spec import model_spec
from hffm_flower.accelerator import choose_device
from hffm_flower.assignment import memory_mib
from hffm_flower.config import RunConfig
from hffm_flower.data.dataset import Indices, Split
from hffm_flower.errors import ConfigError
from hffm_flower.models.encoders import CheckpointEncoder, Encoder
from hffm_flower.models.encoders.encoder import Stream
from hffm_flower.models.footprint import Footprint, footprint, sent_bytes
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.models.parts import ModelSpec, behind_prefix, streams_of
from hffm_flower.modules import ModuleKey, ModuleKind
from hffm_flower.profile import NodeProfile
from hffm_flower.schedule import METHODS
from hffm_flower.session.plan import Plan
from hffm_flower.session.preflight import encoders_read
from hffm_flower.tasks import TASKS

CPU: Final = torch.device("cpu")
GIB: Final = 2**30
HINT: Final = (
    "smaller: train.batch-size, train.checkpointing = true, model.adapter-layers, "
    "model.backbone-precision = bf16, simulation.actors"
)

_found: dict[tuple[object, ...], Footprint] = {}


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
    encoders = _encoders(config, first)
    trained = _keys(keys, first, spec)
    together = sum if pooled else max
    shards = [_shards(config, profile) for profile in profiles]
    steps = {
        task: _step(
            config, first, task, keys=trained, encoders=encoders,
            examples=together(max(map(len, of[task])) for of in shards if task in of),
        )
        for task in first.tasks
    }  # fmt: skip
    flops = together(sum(steps[t].flops * n for t, n in p.tasks.items()) for p in profiles)
    flops *= config.train.local_epochs
    if config.train.local_steps:
        hardest = max(step.flops for step in steps.values())
        flops = hardest * config.train.batch_size * config.train.local_steps
    found = [_data(config, p, of) for p, of in zip(profiles, shards, strict=True)]
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
        message=0 if pooled else sent_bytes(_model(config, first, keys, FakeTensorMode()), keys),
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


def _encoders(config: RunConfig, profile: NodeProfile) -> dict[str, Encoder]:
    known = model_spec(config).encoders
    return {m: encoder_of(config, m, CPU) for m in profile.modalities if m in known}


def _shards(config: RunConfig, profile: NodeProfile) -> dict[str, list[Indices]]:
    """Task -> a device's examples of training and of its two tests."""
    drawn = shared_partition(config)
    splits = drawn.train, drawn.test_iid, drawn.test_skewed
    return {task: [split[task][profile.index] for split in splits] for task in profile.tasks}


def _data(
    config: RunConfig, profile: NodeProfile, shards: Mapping[str, Sequence[Indices]]
) -> tuple[list[int], int]:
    """Inputs and targets of a device's ``shards`` in memory, and what is cached on disk [byte]."""
    sizes, disk = [0, 0, 0], 0
    for task, (train, *tests) in shards.items():
        shapes, cached = _streams(task, model_spec(config), _encoders(config, profile))
        read = sum(s.tokens * (4 * s.width + 1) for s in shapes.values())
        for i, rows in enumerate((train, *tests)):
            target = _targets(config, task, 1, "test" if i else "train").nbytes
            sizes[i] += len(rows) * (read + target)
        distinct = len(train) + len(np.union1d(*tests))
        disk += distinct * sum(shapes[n].tokens * (2 * shapes[n].width + 1) for n in cached)
    return sizes, disk


def _streams(
    task: str, spec: ModelSpec, encoders: Mapping[str, Encoder]
) -> tuple[dict[str, Stream], list[str]]:
    """Shapes of a task's streams as they go into the model, and which of them are cached."""
    held = streams_of(task, encoders)
    shapes = {s: encoders[m].streams[s] for s, m in held.items()}
    prefixed = behind_prefix(task, tuple(encoders), spec)
    return shapes, [s for s, m in held.items() if prefixed or encoders[m].cacheable]


def _step(
    config: RunConfig,
    profile: NodeProfile,
    task: str,
    *,
    examples: int,
    keys: tuple[ModuleKey, ...],
    encoders: Mapping[str, Encoder],
) -> Footprint:
    """Of one task of a device with so many ``examples``, found once per process."""
    spec, known = model_spec(config), _found
    shapes, _ = _streams(task, spec, encoders)
    train = config.train
    targets = _targets(config, task, min(train.batch_size, examples))
    layout = (
        repr(dataclasses.replace(spec, seed=0)), train.precision, train.checkpointing,
        TASKS[task].head, spec.head_size(task), tuple(shapes.items()), targets.shape,
        tuple(m for m in profile.modalities if m in TASKS[task].fused), profile.rank,
        sum(k.kind is ModuleKind.EXPERT for k in keys), tuple(_layout(k, spec) for k in keys),
    )  # fmt: skip
    if layout not in known:
        known[layout] = footprint(
            lambda mode: _model(config, profile, keys, mode), task, streams=shapes,
            targets=targets, precision=train.precision, recompute=train.checkpointing,
        )  # fmt: skip
    return known[layout]


def _targets(config: RunConfig, task: str, count: int, split: Split = "train") -> torch.Tensor:
    """Targets of ``count`` examples in their form: mean tokens where something is to be found."""
    rows = np.zeros(count, dtype=np.int64)
    targets = torch.from_numpy(dataset_of(config, task).targets(split, rows))
    if TASKS[task].target:
        return torch.zeros(*targets.shape, model_spec(config).head_size(task))
    return targets


def _layout(key: ModuleKey, spec: ModelSpec) -> str:
    """What matters of a module: heads of the same size have the same tensors."""
    if key.kind is not ModuleKind.HEAD:
        return "" if key.kind is ModuleKind.EXPERT else str(key)
    return f"{TASKS[key.name].head} {spec.head_size(key.name)}"


def _keys(
    keys: Iterable[ModuleKey], profile: NodeProfile, spec: ModelSpec
) -> tuple[ModuleKey, ...]:
    """Modules ``keys`` of a device, with as many experts more as it is lent."""
    others = (j for j in range(spec.experts) if j not in profile.experts)
    lent = itertools.islice(others, profile.lent)
    more = {ModuleKey(ModuleKind.EXPERT, str(j)) for j in lent}
    return tuple(sorted({*keys, *more}))


def _model(
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
    if on.type == "cuda":
        return Machine(torch.cuda.get_device_properties(on).total_memory, encoders, actors)
    process = psutil.Process().memory_info().rss + encoders
    return Machine(psutil.virtual_memory().total, process, actors)


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
    made = _model(config, model, keys, FakeTensorMode())
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
        f"fit even alone; hffm plan-memory shows what takes it; {HINT}",
        key="model.backbone",
    )
