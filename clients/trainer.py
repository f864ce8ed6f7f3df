"""Local training on one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.examples import TaskData
from hffm_flower.accelerator import mixed_precision
from hffm_flower.errors import DivergedError, Interrupted
from hffm_flower.models.multimodal import MultimodalModel, task_modules
from hffm_flower.modules import ModuleKey
from hffm_flower.sections import TrainConfig
from hffm_flower.seeding import generator


@dataclass(frozen=True, slots=True)
class Trained:
    """What local training did.

    Attributes:
        mass: Module -> distinct local examples that gave it a gradient [examples].
        loss: Sum of the loss over trained examples.
        examples: Examples trained on, counted once per pass [examples].
    """

    mass: Mapping[ModuleKey, float]
    loss: float
    examples: int


def learning_rate(config: TrainConfig, t: int, rounds: int) -> float:
    """Rate of edge round ``t``: linear from the first to the last of ``rounds``."""
    done = (t - 1) / max(1, rounds - 1)
    return config.learning_rate * (1.0 - done * (1.0 - config.final_learning_rate))


def batches(
    sizes: Sequence[int], *, batch_size: int, rng: np.random.Generator
) -> list[tuple[int, NDArray[np.int64]]]:
    """One pass over all parts: batches (part, rows) of one part each, mixed at random."""
    passes = [
        (part, rows.astype(np.int64))
        for part, size in enumerate(sizes)
        for rows in np.split(rng.permutation(size), range(batch_size, size, batch_size))
    ]
    return [passes[i] for i in rng.permutation(len(passes))]


def train(
    model: MultimodalModel,
    data: Sequence[TaskData],
    config: TrainConfig,
    *,
    t: int,
    rounds: int,
    seed: int,
    device_index: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train ``model`` in place for one edge round.

    AdamW from fresh moments each round, the gradient's norm clipped, optionally with a
    proximal term towards the modules at the start (FedProx, Li et al. 2020, arXiv
    1812.06127, Eq. 2). Every draw is keyed by (seed, device, t).

    Args:
        model: On its device; all of its parts are trained.
        data: Local training data, on the same device as the model; each part one task.
        config: Epochs or steps, batch size, rate, decay, clipping, precision.
        t: Absolute edge round, from 1.
        rounds: T, for the learning rate.
        seed: The run's seed.
        device_index: Index of the device.
        stopped: Asked before every step.

    Raises:
        Interrupted: ``stopped`` said so.
        DivergedError: The loss is not finite.
    """
    rng = generator(seed, "train", device_index, t)
    weights = [p for p in model.parts.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in weights] if config.proximal_mu else []
    on = weights[0].device
    optimizer = torch.optim.AdamW(
        weights,
        lr=learning_rate(config, t, rounds),
        weight_decay=config.weight_decay,
        fused=True,
    )
    sizes = [len(part) for part in data]
    seen = [np.zeros(size, dtype=bool) for size in sizes]
    total, examples, steps = torch.zeros((), dtype=torch.float64), 0, 0
    model.train()
    for _ in range(config.local_epochs if not config.local_steps else config.local_steps):
        for index, rows in batches(sizes, batch_size=config.batch_size, rng=rng):
            if stopped():
                raise Interrupted("stopped on request")
            batch = data[index].index(torch.from_numpy(rows).to(on))
            with mixed_precision(on, config.precision):
                output = model(batch.task, batch.inputs)
            loss = model.head(batch.task).loss(output.float(), batch.targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            _add_proximal(weights, start, config.proximal_mu)
            if config.clip_norm:
                torch.nn.utils.clip_grad_norm_(weights, config.clip_norm)
            optimizer.step()
            seen[index][rows] = True
            total += loss.detach().double().cpu() * len(rows)
            examples += len(rows)
            steps += 1
            if config.local_steps and steps == config.local_steps:
                break
        if config.local_steps and steps >= config.local_steps:
            break
    if not torch.isfinite(total):
        raise DivergedError(
            f"the loss is {float(total)} in edge round {t}; lower train.learning-rate or set "
            "train.clip-norm"
        )
    mass: dict[ModuleKey, float] = {}
    for part, visited in zip(data, seen, strict=True):
        for key in task_modules(part.task, part.modalities, model.spec.backbone):
            mass[key] = mass.get(key, 0.0) + float(visited.sum())
    return Trained({k: n for k, n in sorted(mass.items()) if n > 0}, float(total), examples)


def _add_proximal(weights: list[torch.nn.Parameter], start: list[Tensor], mu: float) -> None:
    """Add the gradient of ``mu/2 |w - start|^2``, for the weights that this batch trains."""
    for weight, origin in zip(weights, start, strict=False):
        if weight.grad is not None:
            weight.grad.add_(weight.detach() - origin, alpha=mu)
