"""Quantities and forecasts: least squares, scored by hits and by what is explained.

Shape suffixes: B batch, Q quantities, C channels, H samples ahead, D width.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hffm_flower.models.head import Answer, Head, Marks
from hffm_flower.report import LOWEST_VALUE
from hffm_flower.tasks import TaskSpec

NEAR: Final = 0.5
"""Error of a quantity that counts as right [deviations]."""
FRAME: Final = 3
"""Rows in front of a forecast's samples: mean, deviation and last sample of the window."""


class RegressionHead(Head):
    """Two layers on the pooling token: quantities ``[B, Q]`` in the task's scale."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__(width, size)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, size)

    def forward(self, pooled_BD: Tensor, own_BTD: Tensor) -> Tensor:
        """Quantities."""
        out: Tensor = self.out(F.gelu(self.hidden(pooled_BD)))
        return out

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean squared error; targets are float32 ``[B, Q]``."""
        return F.mse_loss(output, target)

    def score(self, output: Tensor, target: Tensor) -> Marks:
        """Examples with every quantity near, and what is explained of the scale's variance."""
        near_B = ((output - target).abs() <= NEAR).all(1)
        return int(near_B.sum()), explained(((output - target) ** 2).mean(1))

    def guess(self, train: Tensor, target: Tensor) -> Marks:
        """The mean of training."""
        return self.score(train.mean(0, keepdim=True).expand_as(target), target)

    def answer(self, output: Tensor, spec: TaskSpec, given: Tensor | None) -> Answer:
        """The quantities in their unit."""
        mean, deviation = spec.scale
        return super().answer(mean + deviation * output, spec, given)


class ForecastHead(Head):
    """From each channel's token and the pooling token, its next samples ``[B, H, C]``.

    The output is in deviations of the window from its mean, channel by channel (Kim et al.
    2022, RevIN). Targets are float32 ``[B, 3 + H, C]``, the window's frame and what followed;
    the token of a stream is a channel.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__(width, size)
        self.hidden = nn.Linear(2 * width, width)
        self.out = nn.Linear(width, size)

    def forward(self, pooled_BD: Tensor, own_BTD: Tensor) -> Tensor:
        """Samples ahead."""
        both = torch.cat([own_BTD, pooled_BD[:, None].expand_as(own_BTD)], 2)
        out: Tensor = self.out(F.gelu(self.hidden(both))).transpose(1, 2)
        return out

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of the samples."""
        return F.mse_loss(samples(output, target), target[:, FRAME:])

    def score(self, output: Tensor, target: Tensor) -> Marks:
        """Windows forecast better than by their last sample, and the variance explained."""
        return _forecast_marks(samples(output, target), target)

    def guess(self, train: Tensor, target: Tensor) -> Marks:
        """The last sample persists; the same score."""
        return _forecast_marks(target[:, FRAME - 1 : FRAME].expand_as(target[:, FRAME:]), target)

    def answer(self, output: Tensor, spec: TaskSpec, given: Tensor | None) -> Answer:
        """Samples ``[H, C]``, in the unit of the window whose frame is given."""
        return super().answer(output if given is None else samples(output, given), spec, given)


def samples(output: Tensor, target: Tensor) -> Tensor:
    """A forecast ``[B, H, C]`` in the unit of the window, of which ``target`` has the frame."""
    return target[:, :1] + target[:, 1:2] * output


def explained(error_B: Tensor) -> float:
    """Sum over examples of 1 minus the squared error, in shares of the scale's variance."""
    return float((1 - error_B).clamp_min(LOWEST_VALUE).sum())


def _forecast_marks(forecast_BHC: Tensor, target: Tensor) -> Marks:
    ahead_BHC = target[:, FRAME:]
    error_B = ((forecast_BHC - ahead_BHC) ** 2).mean((1, 2))
    lasting_B = ((target[:, FRAME - 1 : FRAME] - ahead_BHC) ** 2).mean((1, 2))
    return int((error_B < lasting_B).sum()), explained(error_B)
