"""A small trainable backbone, for trials.

Shape suffixes: B batch, T tokens, D width. Token 0 is the pooling token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from hffm_flower.models.attention import attend
from hffm_flower.models.encoders.checkpoint import Precision
from hffm_flower.models.encoders.encoder import Weights, fingerprint_of
from hffm_flower.models.prenorm import run_layer
from hffm_flower.modules import ModuleKey, ModuleKind


class PreNormBlock(nn.Module):
    """A trainable pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_ffn = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        for linear in (self.out, self.down):
            nn.init.normal_(linear.weight, std=0.5 / math.sqrt(linear.in_features))

    def forward(self, x_BTD: Tensor, mask_BT: Tensor, *, pooled: bool) -> Tensor:
        """One block; only token 0 is computed behind attention if ``pooled``."""
        q, k, v = self.qkv(self.norm_attention(x_BTD)).chunk(3, -1)
        if pooled:
            q, x_BTD = q[:, :1], x_BTD[:, :1]
        x_BTD = x_BTD + self.out(attend(q, k, v, mask_BT, self.heads))
        out: Tensor = x_BTD + self.down(F.gelu(self.up(self.norm_ffn(x_BTD))))
        return out


class SmallFusion:
    """Two trainable blocks of width 128 on the same frozen encoders: quick, for trials."""

    assets: ClassVar[tuple[str, ...]] = ()
    width: ClassVar[int] = 128
    native_streams: ClassVar[Mapping[str, str]] = {}
    layers: ClassVar[tuple[str, ...]] = ()
    projections: ClassVar[Mapping[str, tuple[int, int]]] = {}
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)
    trims: ClassVar[bool] = False
    depth: ClassVar[int] = 2

    @staticmethod
    def blocks() -> Mapping[ModuleKey, Callable[[], nn.Module]]:
        """``backbone/block.0`` and ``backbone/block.1``."""
        keys = (ModuleKey(ModuleKind.BACKBONE, f"block.{i}") for i in range(SmallFusion.depth))
        return {key: lambda: PreNormBlock(SmallFusion.width, heads=4) for key in keys}

    @staticmethod
    def fingerprint(weights: Weights, seed: int) -> str:
        """Of nothing."""
        return fingerprint_of("small-1")

    @staticmethod
    def load_frozen(weights: Weights, seed: int, precision: Precision = "fp32") -> nn.Module:
        """Nothing is frozen here."""
        return nn.Module()

    @staticmethod
    def prefix(
        frozen: nn.Module, x_BTD: Tensor, mask_BT: Tensor, count: int, *, recompute: bool = False
    ) -> Tensor:
        """The tokens: there are no frozen layers."""
        return x_BTD

    @staticmethod
    def fuse(
        frozen: nn.Module, trained: Sequence[Any], x_BTD: Tensor, mask_BT: Tensor, *,
        recompute: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Run the blocks."""
        for block in trained[:-1]:
            x_BTD = run_layer(block, x_BTD, mask_BT, pooled=False, recompute=recompute)
        pooled = run_layer(trained[-1], x_BTD, mask_BT, pooled=True, recompute=recompute)
        return pooled[:, 0], x_BTD
