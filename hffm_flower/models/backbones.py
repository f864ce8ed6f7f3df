"""Fusion backbones: tokens of all modalities in, fused tokens out.

Shape suffixes: B batch, T tokens, D width, H heads. Token 0 is the pooling token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Final, Protocol, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from hffm_flower.assets import ASSETS, asset_root
from hffm_flower.errors import one_of
from hffm_flower.models.adapters import LayerTuning, Untuned
from hffm_flower.models.attention import attend
from hffm_flower.models.checkpoint_backbones import CheckpointBackbone
from hffm_flower.models.encoders.checkpoint import Precision
from hffm_flower.models.encoders.encoder import Weights, fingerprint_of
from hffm_flower.models.prenorm import run_layer
from hffm_flower.models.small_fusion import SmallFusion
from hffm_flower.modules import ModuleKey
from hffm_flower.seeding import stream_seed

__all__ = ["BACKBONES", "Backbone", "Precision", "Weights", "attend", "backbone_of"]

HF: Final = "hf:"
"""In front of a checkpoint's folder, or its name in the hub."""


class Backbone(Protocol):
    """What fuses the tokens."""

    @property
    def assets(self) -> tuple[str, ...]:
        """Packaged assets that the frozen part loads."""
        ...

    @property
    def width(self) -> int:
        """D, of the tokens that go in and come out."""
        ...

    @property
    def native_streams(self) -> Mapping[str, str]:
        """Streams that go in as they are -> the encoder from which; others have a projector."""
        ...

    @property
    def layers(self) -> tuple[str, ...]:
        """Frozen layers that can be adapted, in order; empty: there are none."""
        ...

    @property
    def projections(self) -> Mapping[str, tuple[int, int]]:
        """Linear maps in each of them -> size of input and output."""
        ...

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """In which its frozen weights can be held."""
        ...

    @property
    def trims(self) -> bool:
        """Whether places of a batch at which no example has a token are left out."""
        ...

    def blocks(self) -> Mapping[ModuleKey, Callable[[], nn.Module]]:
        """Trainable layers, in order -> draws its initial values; or it has frozen ones."""
        ...

    def fingerprint(self, weights: Weights, seed: int) -> str:
        """Hex SHA-256 of all that the frozen layers depend on."""
        ...

    def load_frozen(self, weights: Weights, seed: int, precision: Precision = "fp32") -> nn.Module:
        """The part that is never trained nor sent."""
        ...

    def prefix(
        self, frozen: nn.Module, x_BTD: Tensor, mask_BT: Tensor, count: int, *,
        recompute: bool = False,
    ) -> Tensor:  # fmt: skip
        """What the first ``count`` layers, in which nothing is trained, make of the tokens."""
        ...

    def fuse(
        self, frozen: nn.Module, trained: Sequence[Any], x_BTD: Tensor, mask_BT: Tensor, *,
        recompute: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Fuse: token 0 behind the last layer ``[B, D]``, all tokens before it ``[B, T, D]``.

        Nobody reads the other tokens behind the last layer, so they are not computed there.

        Args:
            frozen: Of `load_frozen`.
            trained: The trainable layers; or what is trained in the last frozen ones, as many
                as there are, and the tokens are those that go into the first of these.
            x_BTD: Tokens; the one that pools comes first.
            mask_BT: Which are there.
            recompute: Keep no inner states of layers for the backward pass: compute them again.
        """
        ...


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
        out: Tensor = self.output_norm(tuning.joined(fed, x))
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
    native_streams: ClassVar[Mapping[str, str]] = {"text": "minilm"}
    layers: ClassVar[tuple[str, ...]] = ("fusion.4", "fusion.5")
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)
    trims: ClassVar[bool] = False
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
    def fingerprint(weights: Weights, seed: int) -> str:
        """Hex SHA-256 of the asset, or of the seed."""
        source = ASSETS["minilm"].sha256 if weights == "pretrained" else str(seed)
        return fingerprint_of("minilm-fusion-1", weights, source)

    @staticmethod
    def load_frozen(weights: Weights, seed: int, precision: Precision = "fp32") -> nn.Module:
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
    def prefix(
        frozen: nn.Module, x_BTD: Tensor, mask_BT: Tensor, count: int, *, recompute: bool = False
    ) -> Tensor:
        """Run the first layers as they are."""
        for layer in list(cast(nn.ModuleList, frozen))[:count]:
            x_BTD = run_layer(layer, x_BTD, mask_BT, Untuned(), pooled=False, recompute=recompute)
        return x_BTD

    @staticmethod
    def fuse(
        frozen: nn.Module, trained: Sequence[Any], x_BTD: Tensor, mask_BT: Tensor, *,
        recompute: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Run the frozen layers with what is trained in them."""
        kept = list(cast(nn.ModuleList, frozen))[-len(trained) :]
        *layers, last = zip(kept, trained, strict=True)
        for layer, tuning in layers:
            x_BTD = run_layer(layer, x_BTD, mask_BT, tuning, pooled=False, recompute=recompute)
        pooled = run_layer(last[0], x_BTD, mask_BT, last[1], pooled=True, recompute=recompute)
        return pooled[:, 0], x_BTD


BACKBONES: Final[Mapping[str, Backbone]] = {
    "minilm-fusion": MiniLMFusion(),
    "small": SmallFusion(),
}
"""Backbones that come with the package."""


def backbone_of(name: str) -> Backbone:
    """The backbone called ``name``: one of `BACKBONES`, or the checkpoint ``hf:SOURCE``.

    Raises:
        ConfigError: There is none.
    """
    if name.startswith(HF):
        return _checkpoint_backbone(name.removeprefix(HF))
    if name not in BACKBONES:
        one_of("backbone", name, [*BACKBONES, f"{HF}SOURCE"], key="model.backbone")
    return BACKBONES[name]


@lru_cache(maxsize=16)
def _checkpoint_backbone(source: str) -> CheckpointBackbone:
    return CheckpointBackbone(source)
