"""Local training on one device, in one go or in segments with an exchange between them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.examples import TaskData
from clients.masses import balance_of, dropped_modalities, masses, note_experts
from clients.work import training_flops
from hffm_flower.accelerator import mixed_precision
from hffm_flower.errors import DivergedError, Interrupted
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.modules import ModuleKey
from hffm_flower.sections import TrainConfig
from hffm_flower.seeding import generator

Batches = list[tuple[int, NDArray[np.int64]]]
"""Batches in the order of training: which part, and which of its rows."""


@dataclass(slots=True)
class Progress:
    """Where a round's local training stands; with the modules, all that is needed to go on.

    Attributes:
        steps: Batches done; the position in the data.
        loss: Sum of the loss over trained examples.
        examples: Examples trained on, counted once per pass [examples].
        flops: Operations done [flop].
        moments: ``parameter/name`` -> the optimiser's tensors.
        origin: Parameter -> its value when the round began; only for a proximal term.
        used: Part of the data -> bool ``[examples, experts]``: which experts each example used.
    """

    steps: int = 0
    loss: float = 0.0
    examples: int = 0
    flops: float = 0.0
    moments: dict[str, Tensor] = field(default_factory=dict)
    origin: dict[str, Tensor] = field(default_factory=dict)
    used: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Flat form, to be saved; inverse of `of`."""
        totals = torch.tensor(
            [self.steps, self.loss, self.examples, self.flops], dtype=torch.float64
        )
        tables = {"moments": self.moments, "origin": self.origin, "used": self.used}
        flat = {f"{t}/{n}": v.cpu() for t, table in tables.items() for n, v in table.items()}
        return {"totals": totals, **flat}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Progress:
        """Read `tensors` back."""
        steps, loss, examples, flops = tensors["totals"].tolist()
        found: dict[str, dict[str, Tensor]] = {t: {} for t in ("moments", "origin", "used")}
        for name, value in tensors.items():
            table, _, rest = name.partition("/")
            if rest:
                found[table][rest] = value
        return cls(int(steps), loss, int(examples), flops, **found)


@dataclass(frozen=True, slots=True)
class Trained:
    """What local training has done so far in its round.

    Attributes:
        mass: Module -> distinct local examples that gave it a gradient [examples].
        loss: Sum of the loss over trained examples.
        examples: Examples trained on, counted once per pass [examples].
        flops: Operations of the round [flop].
        progress: Where it stands.
    """

    mass: Mapping[ModuleKey, float]
    loss: float
    examples: int
    flops: float
    progress: Progress


def learning_rate(config: TrainConfig, t: int, rounds: int) -> float:
    """Rate of edge round ``t``: linear from the first to the last of ``rounds``."""
    done = (t - 1) / max(1, rounds - 1)
    return config.learning_rate * (1.0 - done * (1.0 - config.final_learning_rate))


def batches(sizes: Sequence[int], *, batch_size: int, rng: np.random.Generator) -> Batches:
    """One pass over all parts: batches (part, rows) of one part each, mixed at random."""
    passes = [
        (part, rows.astype(np.int64))
        for part, size in enumerate(sizes)
        for rows in np.split(rng.permutation(size), range(batch_size, size, batch_size))
    ]
    return [passes[i] for i in rng.permutation(len(passes))]


def round_batches(sizes: Sequence[int], config: TrainConfig, rng: np.random.Generator) -> Batches:
    """All batches of a round: ``local-steps`` of them, or ``local-epochs`` passes."""
    drawn: Batches = []
    for _ in range(config.local_steps or config.local_epochs):
        drawn += batches(sizes, batch_size=config.batch_size, rng=rng)
        if config.local_steps and len(drawn) >= config.local_steps:
            return drawn[: config.local_steps]
    return drawn


def train(
    model: MultimodalModel,
    data: Sequence[TaskData],
    config: TrainConfig,
    *,
    t: int,
    rounds: int,
    seed: int,
    device_index: int,
    segment: int = 0,
    segments: int = 1,
    progress: Progress | None = None,
    resting: Collection[ModuleKey] = (),
    personal: Collection[ModuleKey] = (),
    stopped: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train ``model`` in place for one edge round, or for one segment of it.

    AdamW from fresh moments each round, the gradient's norm clipped, optionally with a
    proximal term towards the modules at the start (FedProx, Li et al. 2020, arXiv
    1812.06127, Eq. 2). Every draw is keyed by (seed, device, t). A round in segments, with
    nothing exchanged between them, is the same to the last bit as a round in one go.

    Args:
        model: On its device; all of its modules are trained but those in ``resting``.
        data: Local training data, on the same device as the model; each part one task.
        config: Epochs or steps, batch size, rate, decay, clipping, precision.
        t: Absolute edge round, from 1.
        rounds: T, for the learning rate.
        seed: The run's seed.
        device_index: Index of the device.
        segment: Which of the ``segments``, from 0.
        segments: Parts of about equally many batches.
        progress: What the segment before left; None for the first.
        resting: Modules that are not trained in this round.
        personal: Modules that stay on the device. With ``head-epochs`` they are trained first,
            alone, and rest while the others are (FedRep, Collins et al. 2021, arXiv 2102.07078,
            Alg. 1).
        stopped: Asked before every step.

    Raises:
        Interrupted: ``stopped`` said so.
        DivergedError: The loss is not finite.
    """
    sizes = [len(part) for part in data]
    keys = [k for k in model.keys if k not in resting]
    first = {k for k in keys if k in personal} if config.head_epochs else set()
    rng = generator(seed, "train", device_index, t)
    alone: Batches = []
    for _ in range(config.head_epochs if 0 < len(first) < len(keys) else 0):
        alone += batches(sizes, batch_size=config.batch_size, rng=rng)
    plan = alone + round_batches(sizes, config, rng)
    lost = dropped_modalities(data, plan, config.modality_dropout,
                              generator(seed, "dropout", device_index, t))  # fmt: skip
    named = model.parameters_of(keys)
    ahead = list(model.parameters_of(first).values()) if alone else []
    behind = list(model.parameters_of(set(keys) - first).values()) if alone else []
    weights = list(named.values())
    on = weights[0].device
    model.recompute = config.checkpointing
    flops = training_flops(model, data)
    done = progress or Progress(
        origin={n: p.detach().clone() for n, p in named.items()} if config.proximal_mu else {}
    )
    start = [done.origin[n].to(on) for n in named] if config.proximal_mu else []
    optimizer = torch.optim.AdamW(
        weights,
        lr=learning_rate(config, t, rounds),
        weight_decay=config.weight_decay,
        fused=True,
    )
    _restore(optimizer, named, done.moments)
    total = torch.tensor(done.loss, dtype=torch.float64)
    model.train()
    last = len(plan) * (segment + 1) // segments
    for step in range(done.steps, last):
        if stopped():
            raise Interrupted("stopped on request")
        index, rows = plan[step]
        batch = data[index].index(torch.from_numpy(rows).to(on)).without(lost[step])
        with mixed_precision(on, config.precision):
            output = model(batch.task, model.trimmed(batch.inputs))
        loss = model.head(batch.task).loss(output.float(), batch.targets)
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss + config.balance * balance_of(model))
        if step >= len(alone):
            note_experts(done.used, model, index, rows, len(data[index]))
        for weight in behind if step < len(alone) else ahead:
            weight.grad = None
        _add_proximal(weights, start, config.proximal_mu)
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(weights, config.clip_norm)
        optimizer.step()
        total += loss.detach().double().cpu() * len(rows)
        done.examples += len(rows)
        done.flops += flops[index] * len(rows)
    if not torch.isfinite(total):
        raise DivergedError(
            f"the loss is {float(total)} in edge round {t}; lower train.learning-rate or set "
            "train.clip-norm"
        )
    done.steps, done.loss, done.moments = last, float(total), _moments(optimizer, named)
    mass = masses(model, data, plan[len(alone) : last], lost[len(alone) :], done.used)
    mass = {k: n for k, n in mass.items() if k not in resting}
    return Trained(mass, done.loss, done.examples, done.flops, done)


def _moments(optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        f"{name}/{kind}": value
        for name, weight in named.items()
        for kind, value in optimizer.state.get(weight, {}).items()
    }


def _restore(
    optimizer: torch.optim.Optimizer,
    named: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
) -> None:
    for key, value in moments.items():
        name, _, kind = key.rpartition("/")
        optimizer.state[named[name]][kind] = value.to(named[name].device)


def _add_proximal(weights: list[Tensor], start: list[Tensor], mu: float) -> None:
    """Add the gradient of ``mu/2 |w - start|^2``, for the weights that this batch trains."""
    for weight, origin in zip(weights, start, strict=False):
        if weight.grad is not None:
            weight.grad.add_(weight.detach() - origin, alpha=mu)
