"""Small trainable parts around a frozen backbone: adapters, projectors, prompts.

Shape suffixes: B batch, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BottleneckAdapter(nn.Module):
    """``x' = x + U gelu(D x)`` with U = 0 at the start, so that step 0 is the frozen model.

    Source: Houlsby et al. 2019, arXiv 1902.00751, Fig. 2.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Add the bottleneck's output to ``x_BTD``."""
        out: Tensor = x_BTD + self.up(F.gelu(self.down(x_BTD)))
        return out


class LayerAdapters(nn.Module):
    """The two adapters of one transformer layer: behind attention and behind the FFN."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.attention = BottleneckAdapter(width, rank)
        self.output = BottleneckAdapter(width, rank)


class Projector(nn.Module):
    """Brings one stream of encoder tokens to the width of the backbone.

    LayerNorm, Linear, learned position, LayerNorm: ``[B, T, D_in] -> [B, T, D]``.
    """

    def __init__(self, tokens: int, width_in: int, width: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(width_in)
        self.linear = nn.Linear(width_in, width)
        self.position = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Project the tokens; T must be the stream's number of tokens."""
        out: Tensor = self.norm(self.linear(self.norm_in(x_BTD)) + self.position)
        return out


class ClsPrompt(nn.Module):
    """Learned pooling token for examples without text: ``[B, 1, D]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, batch: int) -> Tensor:
        """The token, once per example."""
        return self.token.expand(batch, 1, -1)
