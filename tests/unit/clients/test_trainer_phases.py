"""What stays on a device may be trained first, alone (FedRep)."""

from __future__ import annotations

import numpy as np
import torch

from clients.resident import Device
from clients.trainer import Progress, train
from hffm_flower.config import RunConfig
from hffm_flower.modules import ModularState, ModuleKind
from tests.support.outcomes import bits

HEADS = {"train__head_epochs": 1, "train__local_epochs": 1}


def trained(config: RunConfig, segments: int, upto: int) -> tuple[ModularState, ModularState]:
    """The model's modules before and after ``upto`` of ``segments`` parts of a round."""
    device = Device(config, 1, torch.device("cpu"))
    model, data = device.model(), device.train_data()
    before, progress = model.state(), None
    heads = [k for k in model.keys if k.kind is ModuleKind.HEAD]
    for segment in range(upto):
        done = train(
            model, data, config.train, t=1, rounds=2, seed=config.seed, device_index=1,
            segment=segment, segments=segments, progress=progress, personal=heads,
        )  # fmt: skip
        progress = Progress.of(done.progress.tensors())
    return before, model.state()


def test_heads_first_then_the_body(tiny: RunConfig) -> None:
    config = tiny.with_values(**HEADS)
    before, half = trained(config, 2, 1)  # as many batches before as behind
    _, whole = trained(config, 2, 2)
    for key, state in before.items():
        moved = any(not np.array_equal(half[key][n], a) for n, a in state.items())
        assert moved == (key.kind is ModuleKind.HEAD), key
        moved = any(not np.array_equal(whole[key][n], a) for n, a in half[key].items())
        assert moved == (key.kind is not ModuleKind.HEAD), key
    assert bits(whole) == bits(trained(config, 1, 1)[1])


def test_without_head_epochs_all_are_trained_together(tiny: RunConfig) -> None:
    _, together = trained(tiny, 1, 1)
    _, first = trained(tiny.with_values(**HEADS), 1, 1)
    assert bits(together) != bits(first)
