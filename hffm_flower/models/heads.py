"""Task heads: from fused tokens to answers, with the loss and the score of each.

Shape suffixes: B batch, T image tokens, D width, C answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hffm_flower.models.captioning import CaptionHead
from hffm_flower.models.head import Answer, Head, Marks
from hffm_flower.models.regression import ForecastHead, RegressionHead
from hffm_flower.models.retrieval import RetrievalHead
from hffm_flower.tasks import TaskSpec

__all__ = ["HEADS", "BoxHead", "ClassHead", "ClassificationHead", "Head", "box_iou"]


class ClassHead(Head):
    """What gives logits ``[B, C]``: targets are classes, int64 ``[B]``."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(output, target)

    def score(self, output: Tensor, target: Tensor) -> Marks:
        """Number of right answers, twice."""
        right = int((output.argmax(1) == target).sum())
        return right, float(right)

    def answer(self, output: Tensor, spec: TaskSpec, given: Tensor | None) -> Answer:
        """The class in words."""
        return spec.answers[int(output[0].argmax())]


class ClassificationHead(ClassHead):
    """Two-layer classifier on the pooling token."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__(width, size)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, size)

    def forward(self, pooled_BD: Tensor, own_BTD: Tensor) -> Tensor:
        """Logits of the answers."""
        out: Tensor = self.out(F.gelu(self.hidden(pooled_BD)))
        return out


class BoxHead(Head):
    """Points at image tokens and refines: boxes ``[B, 4]`` as (cx, cy, w, h) in 0..1.

    Attention of the pooling token over the image grid gives a soft position (a pointer,
    Vinyals et al. 2015, arXiv 1506.03134, Eq. 3); the attended token gives offset and size.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__(width, size)
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

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Five times the L1 distance, plus one minus IoU."""
        return 5 * F.l1_loss(output, target) + (1 - box_iou(output, target)).mean()

    def score(self, output: Tensor, target: Tensor) -> Marks:
        """Boxes with IoU > 0.5, and the sum of IoU."""
        iou = box_iou(output, target)
        return int((iou > 0.5).sum()), float(iou.sum())

    def guess(self, train: Tensor, target: Tensor) -> Marks:
        """The mean box."""
        return self.score(train.mean(0, keepdim=True).expand_as(target), target)


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
    "retrieval": RetrievalHead,
    "caption": CaptionHead,
    "regression": RegressionHead,
    "forecast": ForecastHead,
}
