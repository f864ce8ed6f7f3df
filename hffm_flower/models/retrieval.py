"""Retrieval: the right text to an input, among several, by likeness in a common space.

Shape suffixes: B batch, G texts to choose from, D width, W of the text's tokens, E space.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hffm_flower.models.head import Answer, Head, Marks
from hffm_flower.tasks import TaskSpec

SPACE: Final = 128
FINER: Final = 5
"""Ranks that the finer measure counts as found."""
MOST_SCALE: Final = math.log(100.0)


class RetrievalHead(Head):
    """Two towers, trained by the symmetric InfoNCE loss within the batch.

    Targets are float32 ``[B, G, W]``: mean tokens of the texts to choose from, the right one
    first; training reads no others than that one.

    Source: CLIP, Radford et al. 2021, arXiv 2103.00020, Fig. 3; learned temperature, at most
    100, starting at 1 / 0.07.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__(width, size)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, SPACE)
        self.text_norm = nn.LayerNorm(size)
        self.text = nn.Linear(size, SPACE)
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))

    def forward(self, pooled_BD: Tensor, own_BTD: Tensor) -> Tensor:
        """Place ``[B, E]`` of the input in the common space."""
        out: Tensor = self.out(F.gelu(self.hidden(pooled_BD)))
        return out

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of text given input and of input given text; 0 for a batch of one."""
        texts_BE = F.normalize(self.text(self.text_norm(target[:, 0])), dim=-1)
        scale = self.log_scale.clamp(max=MOST_SCALE).exp()
        logits_BB = scale * F.normalize(output, dim=-1) @ texts_BE.T
        right = torch.arange(len(output), device=output.device)
        return (F.cross_entropy(logits_BB, right) + F.cross_entropy(logits_BB.T, right)) / 2

    def score(self, output: Tensor, target: Tensor) -> Marks:
        """Texts found at rank 1, and within the first `FINER`; a tie is not found."""
        likeness_BG = self.likeness(output, target)
        ahead_B = (likeness_BG[:, 1:] >= likeness_BG[:, :1]).sum(1)
        return int((ahead_B == 0).sum()), float((ahead_B < FINER).sum())

    def answer(self, output: Tensor, spec: TaskSpec, given: Tensor | None) -> Answer:
        """Likeness to each text that is given, -1..1."""
        if given is None:
            return super().answer(output, spec, given)
        return super().answer(self.likeness(output, given), spec, None)

    def likeness(self, output: Tensor, target: Tensor) -> Tensor:
        """Cosine ``[B, G]`` of inputs and texts."""
        texts_BGE = F.normalize(self.text(self.text_norm(target)), dim=-1)
        found: Tensor = (texts_BGE @ F.normalize(output, dim=-1)[:, :, None]).squeeze(-1)
        return found
