"""Fusion backbones: tokens of all modalities in, fused tokens out.

Shape suffixes: B batch, T tokens, D width, H heads. Token 0 is the pooling token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, Protocol, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from hffm_flower.assets import asset_root
from hffm_flower.models.adapters import LayerTuning
from hffm_flower.modules import ModuleKey, ModuleKind
from hffm_flower.seeding import stream_seed

Weights = Literal["pretrained", "random"]


class Backbone(Protocol):
    """What fuses the tokens.

    Attributes:
        assets: Packaged assets that the frozen part loads.
        width: D, of the tokens that go in and come out.
        native_streams: Encoder streams that go in as they are, without a projector.
        layers: Frozen layers that can be adapted, in order; empty: there are none.
        projections: Linear maps in each of them -> size of input and output.
    """

    assets: ClassVar[tuple[str, ...]]
    width: ClassVar[int]
    native_streams: ClassVar[tuple[str, ...]]
    layers: ClassVar[tuple[str, ...]]
    projections: ClassVar[Mapping[str, tuple[int, int]]]

    @staticmethod
    def blocks() -> Mapping[ModuleKey, Callable[[], nn.Module]]:
        """Trainable layers, in order -> draws its initial values; or it has frozen ones."""
        ...

    @staticmethod
    def load_frozen(weights: Weights, seed: int) -> nn.Module:
        """The part that is never trained nor sent."""
        ...

    @staticmethod
    def fuse(
        frozen: nn.Module,
        trained: Sequence[Any],
        x_BTD: Tensor,
        mask_BT: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Fuse: token 0 behind the last layer ``[B, D]``, all tokens before it ``[B, T, D]``.

        Nobody reads the other tokens behind the last layer, so they are not computed there.
        ``trained`` are the trainable layers, or what is trained in each frozen one.
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


BERT_NAMES: Final[Mapping[str, str]] = {
    **{n: f"attention.self.{n}" for n in ("query", "key", "value")},
    "attention_out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
"""Projection of a MiniLM layer -> its name in a layer of BERT."""


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
        parts = [f"{prefix}{BERT_NAMES[n]}" for n in ("query", "key", "value")]
        sources = {n: BERT_NAMES[n] for n in ("attention_out", "up", "down")} | {
            "attention_norm": "attention.output.LayerNorm",
            "output_norm": "output.LayerNorm",
        }
        own = {
            f"qkv.{k}": torch.cat([state[f"{p}.{k}"] for p in parts]) for k in ("weight", "bias")
        }
        for name, source in sources.items():
            own |= {f"{name}.{k}": state[f"{prefix}{source}.{k}"] for k in ("weight", "bias")}
        self.load_state_dict(own)

    def forward(
        self, x_BTD: Tensor, mask_BT: Tensor, tuning: LayerTuning, *, pooled: bool
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
        q = _plus(q, tuning.added("query", x_in))
        k = _plus(k, tuning.added("key", x_BTD))
        v = _plus(v, tuning.added("value", x_BTD))
        seen = attend(q, k, v, mask_BT, self.heads)
        attended = _plus(self.attention_out(seen), tuning.added("attention_out", seen))
        x = self.attention_norm(tuning.attention(attended) + x_in)
        inner = F.gelu(_plus(self.up(x), tuning.added("up", x)))
        fed = _plus(self.down(inner), tuning.added("down", inner))
        out: Tensor = self.output_norm(tuning.output(fed) + x)
        return out


def _plus(x: Tensor, added: Tensor | None) -> Tensor:
    return x if added is None else x + added


class MiniLMFusion:
    """Layers 4 and 5 of all-MiniLM-L6-v2, frozen; what is trained in them starts at zero.

    Text comes in as the token states behind layer 3; every other stream is projected to
    the same width.
    """

    assets: ClassVar[tuple[str, ...]] = ("minilm",)
    width: ClassVar[int] = 384
    native_streams: ClassVar[tuple[str, ...]] = ("text",)
    layers: ClassVar[tuple[str, ...]] = ("fusion.4", "fusion.5")
    projections: ClassVar[Mapping[str, tuple[int, int]]] = {
        **dict.fromkeys(("query", "key", "value", "attention_out"), (384, 384)),
        "up": (384, 1536),
        "down": (1536, 384),
    }

    @staticmethod
    def blocks() -> Mapping[ModuleKey, Callable[[], nn.Module]]:
        """None: its layers are frozen."""
        return {}

    @staticmethod
    def load_frozen(weights: Weights, seed: int) -> nn.Module:
        """The two layers: from the checked asset, or drawn as BERT draws them."""
        layers = nn.ModuleList(FrozenLayer() for _ in MiniLMFusion.layers)
        if weights == "pretrained":
            state = load_file(asset_root("minilm") / "model" / "model.safetensors")
            for name, layer in zip(MiniLMFusion.layers, layers, strict=True):
                cast(FrozenLayer, layer).read(state, f"encoder.layer.{name.split('.')[1]}.")
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
        trained: Sequence[Any],
        x_BTD: Tensor,
        mask_BT: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run the frozen layers with what is trained in them."""
        *layers, last = zip(cast(nn.ModuleList, frozen), trained, strict=True)
        for layer, tuning in layers:
            x_BTD = layer(x_BTD, mask_BT, tuning, pooled=False)
        layer, tuning = last
        return layer(x_BTD, mask_BT, tuning, pooled=True)[:, 0], x_BTD


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
    layers: ClassVar[tuple[str, ...]] = ()
    projections: ClassVar[Mapping[str, tuple[int, int]]] = {}
    depth: ClassVar[int] = 2

    @staticmethod
    def blocks() -> Mapping[ModuleKey, Callable[[], nn.Module]]:
        """``backbone/block.0`` and ``backbone/block.1``."""
        keys = (ModuleKey(ModuleKind.BACKBONE, f"block.{i}") for i in range(SmallFusion.depth))
        return {key: lambda: PreNormBlock(SmallFusion.width, heads=4) for key in keys}

    @staticmethod
    def load_frozen(weights: Weights, seed: int) -> nn.Module:
        """Nothing is frozen here."""
        return nn.Module()

    @staticmethod
    def fuse(
        frozen: nn.Module,
        trained: Sequence[Any],
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
