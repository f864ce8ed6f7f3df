"""Mixture of expert adapters: a gate sends each example through k of the experts held here.

Shape suffixes: B batch, T tokens, D width, E experts held here, R rank, K experts chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hffm_flower.errors import ConfigError


class ExpertPart(nn.Module):
    """One expert at one layer: a bottleneck adapter with zero start, and its row of the gate."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)
        self.gate = nn.Parameter(torch.randn(width) * 0.02)
        self.gate_bias = nn.Parameter(torch.zeros(1))
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)


class ExpertModule(nn.Module):
    """One expert: an `ExpertPart` at every adapted layer.

    The expert's rows of the gates travel with it, so that they are averaged over the devices
    that hold it; a device without the expert cannot dilute them.

    Args:
        layers: Names of the adapted layers, e.g. ``fusion.4``.
        width: D, of the tokens.
        rank: R, of the bottleneck.
    """

    def __init__(self, layers: Sequence[str], width: int, rank: int) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({_name(layer): ExpertPart(width, rank) for layer in layers})

    def part(self, layer: str) -> ExpertPart:
        """The expert's part at ``layer``."""
        return cast(ExpertPart, self.parts[_name(layer)])


class Routing:
    """What one forward pass has routed, over all of its layers.

    Attributes:
        used_BE: Whether the example has the expert among its k at any layer, in the order in
            which the experts are held; None before the first layer.
        balance: Sum over the layers of the load-balancing loss, a scalar.
        layers: Number of layers routed so far.
    """

    def __init__(self) -> None:
        self.used_BE: Tensor | None = None
        self.balance: Tensor = torch.zeros(())
        self.layers = 0

    def add(self, chosen_BE: Tensor, balance: Tensor) -> None:
        """Take one layer's choice and its load-balancing loss."""
        self.used_BE = chosen_BE if self.used_BE is None else self.used_BE | chosen_BE
        self.balance = self.balance + balance
        self.layers += 1

    def examples(self) -> tuple[int, ...]:
        """Examples that used each expert at any layer; empty before the first layer."""
        return () if self.used_BE is None else tuple(self.used_BE.sum(0).tolist())


class ExpertLayer:
    r"""``x' = x + sum_e g_e U_e gelu(D_e x)`` over the k chosen of the experts held here.

    An example is routed as a whole, from its pooling token 0, and not token by token: the mass
    behind a module counts examples, and so an expert has trained on an example or it has not.
    Experts that are not held take no part in the softmax. All of the experts' matrices are one
    product down and one product up; the weight of an expert that is not chosen is zero.

    With one chosen expert (k = 1, or one held) its weight is 1 whatever the gate says, and
    only the load-balancing loss moves the gate.

    Sources: top-k gate: Shazeer et al. 2017, arXiv 1701.06538, Sec. 2.1, without noise and with
    the softmax first, which gives the same weights; load balancing: Fedus et al. 2021,
    arXiv 2101.03961, Eq. 4-6.

    Args:
        layer: Name of the layer.
        experts: Those held here, maybe none.
        k: Experts per example, at most; >= 1.
        routing: Is told what was chosen.

    Raises:
        ConfigError: k < 1.
    """

    def __init__(
        self, layer: str, experts: Sequence[ExpertModule], k: int, routing: Routing
    ) -> None:
        if k < 1:
            raise ConfigError(f"{k} experts per example; it must be at least 1")
        self.parts = [expert.part(layer) for expert in experts]
        self.k = min(k, len(self.parts))
        self.routing = routing

    def __call__(self, x_BTD: Tensor) -> Tensor:
        """Add the chosen experts' output to ``x_BTD``; unchanged if none is held."""
        if not self.parts:
            none_BE = torch.zeros(len(x_BTD), 0, dtype=torch.bool, device=x_BTD.device)
            self.routing.add(none_BE, torch.zeros((), device=x_BTD.device))
            return x_BTD
        gates_BE = self._route(x_BTD[:, 0])
        down_FD = torch.cat([p.down.weight for p in self.parts])  # F = E * R
        up_DF = torch.cat([p.up.weight for p in self.parts], 1)
        down_F = torch.cat([p.down.bias for p in self.parts])
        up_ED = torch.stack([p.up.bias for p in self.parts])
        hidden_BTF = F.gelu(F.linear(x_BTD, down_FD, down_F))
        hidden_BTER = hidden_BTF.view(*hidden_BTF.shape[:-1], len(self.parts), -1)
        gates_BE = gates_BE.to(hidden_BTER.dtype)
        weighted_BTER = hidden_BTER * gates_BE[:, None, :, None]
        bias_BD = gates_BE @ up_ED.to(gates_BE.dtype)
        return x_BTD + (F.linear(weighted_BTER.flatten(-2), up_DF) + bias_BD[:, None])

    def _route(self, x_BD: Tensor) -> Tensor:
        """Weights of the experts, zero where not chosen; rows sum to 1. Always in float32."""
        gate_ED = torch.stack([p.gate for p in self.parts]).float()
        bias_E = torch.cat([p.gate_bias for p in self.parts]).float()
        with torch.autocast(x_BD.device.type, enabled=False):
            logits_BE = F.linear(x_BD.float(), gate_ED, bias_E)
        probs_BE = logits_BE.softmax(-1)
        # Unlike topk, a stable sort gives a tie to the first of the experts, everywhere.
        best_BK = logits_BE.sort(dim=-1, descending=True, stable=True).indices[:, : self.k]
        chosen_BE = torch.zeros_like(probs_BE, dtype=torch.bool).scatter(-1, best_BK, value=True)
        share_E = chosen_BE.float().mean(0) / self.k
        self.routing.add(chosen_BE, len(self.parts) * (share_E @ probs_BE.mean(0)))
        return logits_BE.masked_fill(~chosen_BE, float("-inf")).softmax(-1)


def _name(layer: str) -> str:
    return layer.replace(".", ":")
