"""Small trainable parts around a frozen backbone: adapters, LoRA, projectors, prompts.

Shape suffixes: B batch, T tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    """``U gelu(D x)``, as torch draws its linear layers."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The bottleneck's output."""
        out: Tensor = self.up(F.gelu(self.down(x_BTD)))
        return out


class BottleneckAdapter(Bottleneck):
    """``x' = x + U gelu(D x)`` with U = 0 at the start, so that step 0 is the frozen model.

    Source: Houlsby et al. 2019, arXiv 1902.00751, Fig. 2.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__(width, rank)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Add the bottleneck's output to ``x_BTD``."""
        return x_BTD + super().forward(x_BTD)


class LayerTuning(Protocol):
    """What is trained in one frozen transformer layer; `Untuned` trains nothing."""

    def added(self, name: str, x_BTD: Tensor) -> Tensor | None:
        """What is added to the projection ``name`` of ``x_BTD``; None: nothing."""
        ...

    def attention(self, x_BTD: Tensor) -> Tensor:
        """What becomes of the output of attention."""
        ...

    def joined(self, fed_BTD: Tensor, around_BTD: Tensor) -> Tensor:
        """What becomes of the output of the FFN and of what has gone around it: their sum."""
        ...


class Untuned:
    """The layer as it is."""

    def added(self, name: str, x_BTD: Tensor) -> Tensor | None:
        """Nothing."""
        return None

    def attention(self, x_BTD: Tensor) -> Tensor:
        """As it is."""
        return x_BTD

    def joined(self, fed_BTD: Tensor, around_BTD: Tensor) -> Tensor:
        """The sum."""
        return fed_BTD + around_BTD


class LayerAdapters(nn.Module):
    """The two adapters of one transformer layer: behind attention and behind the FFN."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.attention = BottleneckAdapter(width, rank)
        self.output = BottleneckAdapter(width, rank)

    def added(self, name: str, x_BTD: Tensor) -> Tensor | None:
        """As in `LayerTuning`."""
        return None

    def joined(self, fed_BTD: Tensor, around_BTD: Tensor) -> Tensor:
        """The sum, with the second adapter behind the FFN."""
        out: Tensor = self.output(fed_BTD) + around_BTD
        return out


class CorrectedAdapter(Untuned, nn.Module):
    """One adapter behind a whole layer: ``o + U gelu(D o)``, U = 0 at the start.

    What `PublishedAdapter` becomes when the identity is kept. At step 0 it is the frozen layer,
    to the last bit.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.output = BottleneckAdapter(width, rank)

    def joined(self, fed_BTD: Tensor, around_BTD: Tensor) -> Tensor:
        """The layer's output, with the adapter behind it."""
        out: Tensor = self.output(fed_BTD + around_BTD)
        return out


class PublishedAdapter(Untuned, nn.Module):
    """The adapters of the published case study: ``x + A1(o) + A2(o)``, o the layer's output.

    x is what has gone around the FFN, and ``A(o) = U gelu(D o)`` starts as torch draws it: the
    adapters stand in the FFN's place, whose own output reaches the next layer only through them.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.first = Bottleneck(width, rank)
        self.second = Bottleneck(width, rank)

    def joined(self, fed_BTD: Tensor, around_BTD: Tensor) -> Tensor:
        """What has gone around the FFN, and what the adapters make of the layer's output."""
        whole_BTD = fed_BTD + around_BTD
        out: Tensor = around_BTD + (self.first(whole_BTD) + self.second(whole_BTD))
        return out


WIRINGS: Final[Mapping[str, type[LayerAdapters | CorrectedAdapter | PublishedAdapter]]] = {
    "both": LayerAdapters,
    "corrected": CorrectedAdapter,
    "published": PublishedAdapter,
}
"""How bottlenecks stand in a frozen layer."""


class LowRank(nn.Module):
    """``B A``, with B = 0 at the start and A drawn as torch draws a linear layer.

    ``drawn`` rows of A are drawn whatever the rank, so that all ranks share their first rows.
    """

    def __init__(self, width_in: int, width_out: int, rank: int, drawn: int) -> None:
        super().__init__()
        rows = torch.empty(drawn, width_in).uniform_(-1, 1) / math.sqrt(width_in)
        self.lora_A = nn.Linear(width_in, rank, bias=False, device="meta")  # draws nothing
        self.lora_B = nn.Linear(rank, width_out, bias=False, device="meta")
        self.lora_A.weight = nn.Parameter(rows[:rank].clone())
        self.lora_B.weight = nn.Parameter(torch.zeros(width_out, rank))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """``B A x``."""
        out: Tensor = self.lora_B(self.lora_A(x_BTD))
        return out


class LayerLora(nn.Module):
    """LoRA on projections of one layer: ``W x + scale B A x``.

    Source: Hu et al. 2021, arXiv 2106.09685, Eq. 3.

    Args:
        projections: Name -> size of its input and of its output.
        rank: Width of A's output.
        scale: Of the product.
        drawn: Highest rank of a device.
    """

    def __init__(
        self, projections: Mapping[str, tuple[int, int]], rank: int, *, scale: float, drawn: int
    ) -> None:
        super().__init__()
        self.scale = scale
        for name, (width_in, width_out) in projections.items():
            self.add_module(name, LowRank(width_in, width_out, rank, drawn))

    def added(self, name: str, x_BTD: Tensor) -> Tensor | None:
        """As in `LayerTuning`."""
        factors = self._modules.get(name)
        return None if factors is None else factors(x_BTD) * self.scale

    def attention(self, x_BTD: Tensor) -> Tensor:
        """As it is."""
        return x_BTD

    def joined(self, fed_BTD: Tensor, around_BTD: Tensor) -> Tensor:
        """The sum."""
        return fed_BTD + around_BTD


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


class SoftPrompt(nn.Module):
    """Learned tokens that stand for a task, for a modality, or for a missing one.

    Source: Lester et al. 2021, arXiv 2104.08691; federated: PromptFL, arXiv 2208.11625; for
    missing modalities: Lee et al. 2023, arXiv 2303.03369.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(tokens, width) * 0.02)

    def forward(self, batch: int) -> Tensor:
        """The tokens, once per example: ``[B, T, D]``."""
        return self.tokens.expand(batch, -1, -1)


class ExpertTuning(Untuned):
    """A mixture of experts behind the FFN of a layer, and nothing behind attention."""

    def __init__(self, experts: Callable[[Tensor], Tensor]) -> None:
        self._experts = experts

    def joined(self, fed_BTD: Tensor, around_BTD: Tensor) -> Tensor:
        """The sum, with what the chosen experts make of the FFN's output."""
        return self._experts(fed_BTD) + around_BTD
