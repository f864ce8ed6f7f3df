"""Fusion backbones: tokens of all modalities in, fused tokens out.

Shape suffixes: B batch, T tokens, D width, H heads. Token 0 is the pooling token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Literal, Protocol, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from hffm_flower.assets import asset_root
from hffm_flower.models.adapters import LayerAdapters
from hffm_flower.modules import ModuleKey, ModuleKind
from hffm_flower.seeding import stream_seed

Weights = Literal["pretrained", "random"]


class Backbone(Protocol):
    """What fuses the tokens.

    Attributes:
        assets: Packaged assets that the frozen part loads.
        width: D, of the tokens that go in and come out.
        native_streams: Encoder streams that go in as they are, without a projector.
    """

    assets: ClassVar[tuple[str, ...]]
    width: ClassVar[int]
    native_streams: ClassVar[tuple[str, ...]]

    @staticmethod
    def module_keys() -> tuple[ModuleKey, ...]:
        """Trainable modules of the backbone, one per layer, in order."""
        ...

    @staticmethod
    def make_module(adapter_rank: int) -> nn.Module:
        """One trainable module, of any layer, with its initial values drawn."""
        ...

    @staticmethod
    def load_frozen(weights: Weights, seed: int) -> nn.Module:
        """The part that is never trained nor sent."""
        ...

    @staticmethod
    def fuse(
        frozen: nn.Module,
        trained: Sequence[nn.Module],
        x_BTD: Tensor,
        mask_BT: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Fuse: token 0 behind the last layer ``[B, D]``, all tokens before it ``[B, T, D]``.

        Nobody reads the other tokens behind the last layer, so they are not computed there.
        """
        ...


def attend(q_BTD: Tensor, k_BTD: Tensor, v_BTD: Tensor, mask_BT: Tensor, heads: int) -> Tensor:
    """Multi-head scaled dot-product attention over the tokens where ``mask_BT`` is true."""

    def split(x_BTD: Tensor) -> Tensor:
        batch, tokens, _ = x_BTD.shape
        return x_BTD.view(batch, tokens, heads, -1).transpose(1, 2)

    out_BHTD = F.scaled_dot_product_attention(
        split(q_BTD), split(k_BTD), split(v_BTD), attn_mask=mask_BT[:, None, None, :]
    )
    return out_BHTD.transpose(1, 2).flatten(-2)


class FrozenLayer(nn.Module):
    """One post-norm transformer layer of MiniLM; its weights are constants."""

    heads: Final = 12

    def __init__(self, width: int = 384, inner: int = 1536) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.output_norm = nn.LayerNorm(width, eps=1e-12)

    def read(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Copy one layer of a BERT state dict in."""
        parts = [f"{prefix}attention.self.{n}" for n in ("query", "key", "value")]
        sources = {
            "attention_out": "attention.output.dense",
            "attention_norm": "attention.output.LayerNorm",
            "up": "intermediate.dense",
            "down": "output.dense",
            "output_norm": "output.LayerNorm",
        }
        own = {
            f"qkv.{k}": torch.cat([state[f"{p}.{k}"] for p in parts]) for k in ("weight", "bias")
        }
        for name, source in sources.items():
            own |= {f"{name}.{k}": state[f"{prefix}{source}.{k}"] for k in ("weight", "bias")}
        self.load_state_dict(own)

    def forward(
        self, x_BTD: Tensor, mask_BT: Tensor, adapters: LayerAdapters, *, pooled: bool
    ) -> Tensor:
        """One layer; only token 0 is computed behind attention if ``pooled``."""
        width = x_BTD.shape[-1]
        if pooled:
            x_in = x_BTD[:, :1]
            q = F.linear(x_in, self.qkv.weight[:width], self.qkv.bias[:width])
            k, v = F.linear(x_BTD, self.qkv.weight[width:], self.qkv.bias[width:]).chunk(2, -1)
        else:
            x_in = x_BTD
            q, k, v = self.qkv(x_BTD).chunk(3, -1)
        attended = self.attention_out(attend(q, k, v, mask_BT, self.heads))
        x = self.attention_norm(adapters.attention(attended) + x_in)
        out: Tensor = self.output_norm(adapters.output(self.down(F.gelu(self.up(x)))) + x)
        return out


class MiniLMFusion:
    """Layers 4 and 5 of all-MiniLM-L6-v2, frozen, with zero-start adapters in each.

    Text comes in as the token states behind layer 3; every other stream is projected to
    the same width. Source of the adapter: Houlsby et al. 2019, arXiv 1902.00751.
    """

    assets: ClassVar[tuple[str, ...]] = ("minilm",)
    width: ClassVar[int] = 384
    native_streams: ClassVar[tuple[str, ...]] = ("text",)
    layers: ClassVar[tuple[int, ...]] = (4, 5)

    @staticmethod
    def module_keys() -> tuple[ModuleKey, ...]:
        """``adapter/fusion.4`` and ``adapter/fusion.5``."""
        return tuple(ModuleKey(ModuleKind.ADAPTER, f"fusion.{i}") for i in MiniLMFusion.layers)

    @staticmethod
    def make_module(adapter_rank: int) -> nn.Module:
        """The adapters of one layer."""
        return LayerAdapters(MiniLMFusion.width, adapter_rank)

    @staticmethod
    def load_frozen(weights: Weights, seed: int) -> nn.Module:
        """The two layers: from the checked asset, or drawn as BERT draws them."""
        layers = nn.ModuleList(FrozenLayer() for _ in MiniLMFusion.layers)
        if weights == "pretrained":
            state = load_file(asset_root("minilm") / "model" / "model.safetensors")
            for index, layer in zip(MiniLMFusion.layers, layers, strict=True):
                cast(FrozenLayer, layer).read(state, f"encoder.layer.{index}.")
        else:
            rng = torch.Generator().manual_seed(
                stream_seed(seed, "random-weights", "minilm-fusion")
            )
            for module in layers.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02, generator=rng)
                    nn.init.zeros_(module.bias)
        return layers.requires_grad_(False).eval()

    @staticmethod
    def fuse(
        frozen: nn.Module,
        trained: Sequence[nn.Module],
        x_BTD: Tensor,
        mask_BT: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run the frozen layers with their adapters."""
        *layers, last = zip(cast(nn.ModuleList, frozen), trained, strict=True)
        for layer, adapters in layers:
            x_BTD = layer(x_BTD, mask_BT, adapters, pooled=False)
        layer, adapters = last
        return layer(x_BTD, mask_BT, adapters, pooled=True)[:, 0], x_BTD


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
    native_streams: ClassVar[tuple[str, ...]] = ()
    blocks: ClassVar[int] = 2

    @staticmethod
    def module_keys() -> tuple[ModuleKey, ...]:
        """``backbone/block.0`` and ``backbone/block.1``."""
        return tuple(
            ModuleKey(ModuleKind.BACKBONE, f"block.{i}") for i in range(SmallFusion.blocks)
        )

    @staticmethod
    def make_module(adapter_rank: int) -> nn.Module:
        """One block; it has no adapter."""
        return PreNormBlock(SmallFusion.width, heads=4)

    @staticmethod
    def load_frozen(weights: Weights, seed: int) -> nn.Module:
        """Nothing is frozen here."""
        return nn.Module()

    @staticmethod
    def fuse(
        frozen: nn.Module,
        trained: Sequence[nn.Module],
        x_BTD: Tensor,
        mask_BT: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run the blocks."""
        for block in trained[:-1]:
            x_BTD = block(x_BTD, mask_BT, pooled=False)
        return trained[-1](x_BTD, mask_BT, pooled=True)[:, 0], x_BTD


BACKBONES: Final[Mapping[str, type[Backbone]]] = {
    "minilm-fusion": MiniLMFusion,
    "small": SmallFusion,
}
