"""What each device carries in the backbone: the rank of its LoRA, its experts."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from hffm_flower.assignment import assign, memory_mib
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from hffm_flower.models.parts import ModelSpec
from hffm_flower.profile import NodeProfile
from hffm_flower.seeding import generator
from hffm_flower.tree import groups_of, plant

STRANGER = 0.1
"""Fit of an expert to a task that is not the one that it is meant for."""


def memories_mib(config: RunConfig) -> NDArray[np.float64]:
    """Memory of every device for what it trains in the backbone [MiB], drawn from the seed."""
    devices = config.tree.devices
    values = config.tree.memory_mib or (math.inf,)
    places = generator(config.seed, "memory").permutation(devices)
    return np.array([values[place % len(values)] for place in places], dtype=np.float64)


def lora_mib(spec: ModelSpec, rank: int) -> float:
    """Memory that training LoRA of a rank takes in all layers [MiB]."""
    projections = spec.family.projections
    sizes = [sum(projections[name]) for name in spec.lora.chosen(spec.backbone)]
    return memory_mib(rank * sum(sizes) * len(spec.layers))


def ranks(config: RunConfig, spec: ModelSpec) -> tuple[int, ...]:
    """LoRA rank of every device: the highest that its memory holds; without budgets, drawn.

    Raises:
        ConfigError: A device's memory does not hold the lowest rank.
    """
    chosen = sorted(spec.lora.ranks)
    if not config.tree.memory_mib:
        places = generator(config.seed, "rank").permutation(config.tree.devices)
        return tuple(chosen[place % len(chosen)] for place in places)
    memories = memories_mib(config)
    least = lora_mib(spec, chosen[0])
    if (short := least - memories.min()) > 0:
        raise ConfigError(
            f"LoRA of rank {chosen[0]} takes {least:.3g} MiB in training; device "
            f"{int(memories.argmin())} has {memories.min():.3g} MiB: {short:.3g} MiB short",
            key="tree.memory-mib",
        )
    fitting = [[r for r in chosen if lora_mib(spec, r) <= memory] for memory in memories]
    return tuple(held[-1] for held in fitting)


def expert_mib(spec: ModelSpec) -> float:
    """Memory that training one expert takes [MiB]: in every layer two maps and a gate's row."""
    width = spec.family.width
    one = 2 * width * spec.adapter_rank + spec.adapter_rank + 2 * width + 1
    return memory_mib(one * len(spec.layers))


def fitness(
    profiles: tuple[NodeProfile, ...], spec: ModelSpec, tasks: tuple[str, ...]
) -> NDArray[np.float64]:
    """How well each expert suits each device ``[devices, experts]``.

    Expert j is meant for task j modulo the number of tasks; an expert suits a device by the
    share of its examples that are of that task, others count a tenth.
    """
    fit = np.zeros((len(profiles), spec.experts))
    for profile in profiles:
        total = sum(profile.tasks.values())
        for j in range(spec.experts):
            own = profile.tasks.get(tasks[j % len(tasks)], 0)
            if total:
                fit[profile.index, j] = (own + STRANGER * (total - own)) / total
    return fit


def equipped(
    config: RunConfig, spec: ModelSpec, profiles: tuple[NodeProfile, ...]
) -> tuple[NodeProfile, ...]:
    """The devices with their rank and their experts.

    Raises:
        ConfigError: Budgets of memory that cannot be met; the message has the shortfall.
    """
    if spec.adapter == "lora":
        found = ranks(config, spec)
        return tuple(dataclasses.replace(p, rank=found[p.index]) for p in profiles)
    if spec.adapter != "experts":
        return profiles
    size, busy = expert_mib(spec), [p.index for p in profiles if not p.idle]
    memories, lent = memories_mib(config), config.model.experts_lent
    lends = memories >= size * (1 + lent)  # one of its own comes first
    memories[lends] -= size * lent
    place = {index: at for at, index in enumerate(busy)}
    clusters = [[place[k] for k in c if k in place] for c in groups_of(config, plant(config))]
    edge_mib = config.tree.edge_memory_mib or math.inf
    fit = fitness(profiles, spec, config.data.tasks)
    placed = assign(
        fit[busy], np.full(spec.experts, size), memories[busy], clusters,
        np.full(len(clusters), edge_mib), min(config.model.expert_copies, len(busy)),
        config.model.experts_held, names=busy,
    )  # fmt: skip
    if not placed.proven:  # another machine might have found another one
        raise ConfigError(
            f"no best placement of {spec.experts} experts on {len(busy)} devices was found in "
            "time; fewer experts, or fewer different budgets in tree.memory-mib, are easier",
            key="model.experts",
        )
    held = placed.held
    return tuple(
        dataclasses.replace(p, experts=held[place[p.index]], lent=lent * int(lends[p.index]))
        if p.index in place else p
        for p in profiles
    )  # fmt: skip
