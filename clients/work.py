"""How much computing an example costs: counted on the model itself, once per process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clients.examples import TaskData
from hffm_flower.models.multimodal import MultimodalModel

SAMPLE = 2
"""Examples that are passed through the model to count."""

_counted: dict[tuple[object, ...], float] = {}


def training_flops(model: MultimodalModel, data: Sequence[TaskData]) -> list[float]:
    """Floating-point operations of training on one example of each part: forward and backward.

    Matrix products, convolutions and attention are counted, a multiplication and an addition
    as two, the same on every kind of processor; the frozen encoders are not, their output is
    cached.

    Args:
        model: Left as it is, without gradients.
        data: Parts of one task each.
    """
    return [_of(model, part) for part in data]


def _of(model: MultimodalModel, part: TaskData) -> float:
    layout = tuple((name, *tokens.values.shape[1:]) for name, tokens in sorted(part.inputs.items()))
    key = (repr(model.spec), model.rank, model.experts, model.recompute,
           part.task, layout, part.targets.shape[1:])  # fmt: skip
    if key not in _counted:
        rows = torch.arange(min(SAMPLE, len(part)), device=part.targets.device)
        batch = part.index(rows)
        # Attention as matrix products, since fused kernels of CPUs are not known to what counts.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            output = model(batch.task, batch.inputs)
            torch.autograd.backward(model.head(batch.task).loss(output.float(), batch.targets))
        model.zero_grad(set_to_none=True)
        _counted[key] = counter.get_total_flops() / len(rows)
    return _counted[key]
