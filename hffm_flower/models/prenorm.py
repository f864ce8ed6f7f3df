"""A frozen pre-norm transformer layer, as in ViLT, GPT-2 and Llama.

Shape suffixes: B batch, T tokens, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hffm_flower.models.adapters import LayerTuning
from hffm_flower.models.attention import split_heads


@dataclass(frozen=True, slots=True)
class Sight:
    """What all layers of a pass have in common.

    Attributes:
        mask: Which token sees which: bool, broadcast to ``[B, H, T, T]``.
        turns: Cosine and sine of the rotary positions ``[B, 1, T, D / H]``; None: there are none.
        pooled: Place of the pooling token.
    """

    mask: Tensor
    turns: tuple[Tensor, Tensor] | None
    pooled: int

    @classmethod
    def of(cls, mask_BT: Tensor, *, causal: bool, rotary: nn.Module | None, like: Tensor) -> Sight:
        """The sight of tokens of which those in ``mask_BT`` are there."""
        mask = mask_BT[:, None, None, :]
        if causal:
            tokens = mask_BT.shape[1]
            square = torch.ones(tokens, tokens, dtype=torch.bool, device=mask_BT.device)
            # A token that is not there sees itself, so that no row is empty.
            mask = (mask & square.tril()) | torch.eye(
                tokens, dtype=torch.bool, device=square.device
            )
        turns = None
        if rotary is not None:
            cos, sin = rotary(like, positions(mask_BT))
            turns = (cos[:, None], sin[:, None])
        return cls(mask, turns, -1 if causal else 0)

    def rows(self, *, pooled: bool) -> Tensor:
        """The mask, of the pooling token alone if ``pooled``."""
        if not pooled or self.mask.shape[-2] == 1:
            return self.mask
        return self.mask[..., self.pooled :, :]


def positions(mask_BT: Tensor) -> Tensor:
    """Position of every token among those that are there ``[B, T]``."""
    return (mask_BT.long().cumsum(1) - 1).clamp_min(0)


class FrozenPreNorm(nn.Module):
    """One layer: ``x + attention(norm(x))``, then ``x + ffn(norm(x))``.

    Args:
        parts: ``norm_attention``, ``query``, ``key``, ``value``, ``attention_out``,
            ``norm_ffn``, ``up``, ``down``, and ``gate`` where the FFN has one.
        heads: Of queries.
        head_width: Width of a head.
        activation: Of the FFN.
    """

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        heads: int,
        *,
        head_width: int,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.heads, self.head_width, self.activation = heads, head_width, activation
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x_BTD: Tensor, sight: Sight, tuning: LayerTuning, *, pooled: bool) -> Tensor:
        """One layer; only the pooling token is computed behind attention if ``pooled``."""
        normed = self.get_submodule("norm_attention")(x_BTD)
        at = slice(sight.pooled, sight.pooled + 1 or None)
        x_in, asking = (x_BTD[:, at], normed[:, at]) if pooled else (x_BTD, normed)
        seen = self._attend(asking, normed, sight, tuning, pooled=pooled)
        attended = self._project("attention_out", seen, tuning)
        x = x_in + tuning.attention(attended)
        return tuning.joined(self._feed(x, tuning), x)

    def _attend(
        self, asking: Tensor, x_BTD: Tensor, sight: Sight, tuning: LayerTuning, *, pooled: bool
    ) -> Tensor:
        q = split_heads(self._project("query", asking, tuning), self.heads)
        key, value = (self._project(n, x_BTD, tuning) for n in ("key", "value"))
        k, v = (split_heads(x, x.shape[-1] // self.head_width) for x in (key, value))
        if sight.turns is not None:
            k = turned(k, *sight.turns)
            last = slice(sight.pooled, None) if pooled else slice(None)
            q = turned(q, *(turn[:, :, last] for turn in sight.turns))
        if k.shape[1] != self.heads:
            k, v = (x.repeat_interleave(self.heads // x.shape[1], 1) for x in (k, v))
        out_BHTD = F.scaled_dot_product_attention(q, k, v, attn_mask=sight.rows(pooled=pooled))
        return out_BHTD.transpose(1, 2).flatten(-2)

    def _feed(self, x_BTD: Tensor, tuning: LayerTuning) -> Tensor:
        x = self.get_submodule("norm_ffn")(x_BTD)
        inner = self._project("up", x, tuning)
        if "gate" in self._modules:
            inner = self.activation(self._project("gate", x, tuning)) * inner
        else:
            inner = self.activation(inner)
        return self._project("down", inner, tuning)

    def _project(self, name: str, x_BTD: Tensor, tuning: LayerTuning) -> Tensor:
        """A projection, in the precision of its weights, and what is trained beside it."""
        linear = self._modules[name]
        assert isinstance(linear, nn.Linear)
        out: Tensor
        if linear.weight.dtype == x_BTD.dtype or torch.is_autocast_enabled(x_BTD.device.type):
            out = linear(x_BTD)
        else:
            out = linear(x_BTD.to(linear.weight.dtype)).to(x_BTD.dtype)
        added = tuning.added(name, x_BTD)
        return out if added is None else out + added


def turned(x_BHTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding: the halves of each head turned by its position's angle.

    Source: Su et al. 2021, arXiv 2104.09864, Eq. 34, with halves in place of pairs.
    """
    low, high = x_BHTD.chunk(2, -1)
    return x_BHTD * cos + torch.cat([-high, low], -1) * sin


def run_layer(layer: nn.Module, *inputs: object, pooled: bool, recompute: bool) -> Tensor:
    """One layer of any backbone.

    With ``recompute`` its inner states are not kept for the backward pass, where it runs again.
    No layer draws at random, so that both times give the same bits.
    """
    out: Tensor
    if recompute and torch.is_grad_enabled():
        out = checkpoint(
            layer, *inputs, pooled=pooled, use_reentrant=False, preserve_rng_state=False
        )
    else:
        out = layer(*inputs, pooled=pooled)
    return out
