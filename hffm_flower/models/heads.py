"""Task heads: from fused tokens to answers, with the loss and the score of each.

Shape suffixes: B batch, T image tokens, D width, C answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Head(Protocol):
    """What turns fused tokens into a task's answer."""

    def __init__(self, width: int, answers: int) -> None: ...

    def __call__(self, pooled_BD: Tensor, own_BTD: Tensor) -> Tensor:
        """Raw output, from the pooling token and the tokens of the task's last stream."""
        ...

    @staticmethod
    def loss(output: Tensor, target: Tensor) -> Tensor:
        """Mean loss over the batch, a scalar."""
        ...

    @staticmethod
    def score(output: Tensor, target: Tensor) -> tuple[int, float]:
        """Right answers, and the sum of the finer measure, over the batch."""
        ...


class ClassificationHead(nn.Module):
    """Two-layer classifier on the pooling token: ``[B, C]`` logits."""

    def __init__(self, width: int, answers: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, answers)

    def forward(self, pooled_BD: Tensor, own_BTD: Tensor) -> Tensor:
        """Logits of the answers."""
        out: Tensor = self.out(F.gelu(self.hidden(pooled_BD)))
        return out

    @staticmethod
    def loss(output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy; targets are int64 ``[B]``."""
        return F.cross_entropy(output, target)

    @staticmethod
    def score(output: Tensor, target: Tensor) -> tuple[int, float]:
        """Number of right answers, twice."""
        right = int((output.argmax(1) == target).sum())
        return right, float(right)


class BoxHead(nn.Module):
    """Points at image tokens and refines: boxes ``[B, 4]`` as (cx, cy, w, h) in 0..1.

    Attention of the pooling token over the image grid gives a soft position (a pointer,
    Vinyals et al. 2015, arXiv 1506.03134, Eq. 3); the attended token gives offset and size.
    """

    def __init__(self, width: int, answers: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 4)

    def forward(self, pooled_BD: Tensor, own_BTD: Tensor) -> Tensor:
        """Boxes; ``own_BTD`` is a square image grid."""
        side = math.isqrt(own_BTD.shape[1])
        scores_BT = (self.key(own_BTD) @ self.query(pooled_BD)[:, :, None]).squeeze(-1)
        weights_BT = (scores_BT / math.sqrt(own_BTD.shape[-1])).softmax(-1)
        centre = (torch.arange(side, device=own_BTD.device) + 0.5) / side
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        pointed_B2 = weights_BT @ torch.stack([x.flatten(), y.flatten()], 1).to(weights_BT.dtype)
        attended_BD = (weights_BT[:, :, None] * own_BTD).sum(1)
        refined_B4 = self.out(F.gelu(self.hidden(attended_BD)))
        corner_B2 = pointed_B2 + refined_B4[:, :2].tanh() / side
        return torch.cat([corner_B2, refined_B4[:, 2:].sigmoid()], 1)

    @staticmethod
    def loss(output: Tensor, target: Tensor) -> Tensor:
        """Five times the L1 distance, plus one minus IoU."""
        return 5 * F.l1_loss(output, target) + (1 - box_iou(output, target)).mean()

    @staticmethod
    def score(output: Tensor, target: Tensor) -> tuple[int, float]:
        """Boxes with IoU > 0.5, and the sum of IoU."""
        iou = box_iou(output, target)
        return int((iou > 0.5).sum()), float(iou.sum())


def box_iou(a_B4: Tensor, b_B4: Tensor) -> Tensor:
    """Intersection over union ``[B]`` of boxes given as (cx, cy, w, h)."""
    low = torch.maximum(a_B4[:, :2] - a_B4[:, 2:] / 2, b_B4[:, :2] - b_B4[:, 2:] / 2)
    high = torch.minimum(a_B4[:, :2] + a_B4[:, 2:] / 2, b_B4[:, :2] + b_B4[:, 2:] / 2)
    shared = (high - low).clamp_min(0).prod(1)
    union = a_B4[:, 2:].prod(1) + b_B4[:, 2:].prod(1) - shared
    return shared / union.clamp_min(1e-6)


HEADS: Final[Mapping[str, type[Head]]] = {
    "classification": ClassificationHead,
    "box": BoxHead,
}
