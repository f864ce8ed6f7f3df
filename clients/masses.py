"""Which modules the examples of a round have trained, and which inputs they went without."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.examples import TaskData
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.models.parts import task_modules
from hffm_flower.modules import ModuleKey, ModuleKind
from hffm_flower.tasks import TASKS

Lost = Sequence[frozenset[str]]
"""Step -> modalities that its batch goes without."""


def dropped_modalities(
    data: Sequence[TaskData],
    plan: Sequence[tuple[int, NDArray[np.int64]]],
    chance: float,
    rng: np.random.Generator,
) -> Lost:
    """For every batch, the optional modalities that are left out, each with that ``chance``.

    A modality that the task requires always stays, and so does an example's only one.
    """
    if not chance:
        return [frozenset()] * len(plan)
    lost = []
    for index, _ in plan:
        part = data[index]
        optional = sorted(part.modalities & set(TASKS[part.task].optional))
        gone = frozenset(m for m in optional if rng.random() < chance)
        lost.append(gone if part.modalities - gone else frozenset())
    return lost


def balance_of(model: MultimodalModel) -> Tensor | float:
    """Load-balancing loss of the model's last pass; 0 without experts."""
    return model.routing.balance if model.routing is not None else 0.0


def note_experts(
    used: dict[str, Tensor],
    model: MultimodalModel,
    index: int,
    rows: NDArray[np.int64],
    size: int,
) -> None:
    """Enter the experts of the last pass: over ``rows`` of part ``index``, which has ``size``."""
    if model.routing is None or model.routing.used_BE is None:
        return
    name = str(index)
    if name not in used:
        used[name] = torch.zeros(size, len(model.experts), dtype=torch.bool)
    used[name][torch.from_numpy(rows)] |= model.routing.used_BE.cpu()


def masses(
    model: MultimodalModel,
    data: Sequence[TaskData],
    done: Sequence[tuple[int, NDArray[np.int64]]],
    lost: Lost,
    used: Mapping[str, Tensor],
) -> dict[ModuleKey, float]:
    """Distinct examples behind each module; modules without any are left out.

    Args:
        model: The model.
        data: Its training data.
        done: Batches that were trained on.
        lost: What each of them went without.
        used: `Progress.used` of the trainer.
    """
    seen: dict[tuple[int, ModuleKey], NDArray[np.bool_]] = {}
    known: dict[tuple[int, frozenset[str]], Collection[ModuleKey]] = {}
    for (index, rows), gone in zip(done, lost, strict=False):
        if (index, gone) not in known:
            known[index, gone] = _trained(model, data[index], gone)
        for key in known[index, gone]:
            seen.setdefault((index, key), np.zeros(len(data[index]), np.bool_))[rows] = True
    mass: dict[ModuleKey, float] = {}
    for (_, key), which in seen.items():
        mass[key] = mass.get(key, 0.0) + float(which.sum())
    for counts in used.values():
        for key, count in zip(model.experts, counts.sum(0).tolist(), strict=True):
            mass[key] = mass.get(key, 0.0) + float(count)
    return {k: n for k, n in sorted(mass.items()) if n > 0}


def _trained(model: MultimodalModel, part: TaskData, gone: frozenset[str]) -> tuple[ModuleKey, ...]:
    """Modules to which each example of ``part`` gives its mass; experts count by use."""
    keys = model.keys
    if not model.spec.whole:
        keys = task_modules(part.task, part.modalities - gone, model.spec, ())
    return tuple(key for key in keys if key.kind is not ModuleKind.EXPERT)
