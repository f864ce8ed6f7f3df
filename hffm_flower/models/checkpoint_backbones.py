"""Checkpoints of `transformers` as backbones: all their layers, frozen.

Shape suffixes: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from hffm_flower.models.adapters import Untuned
from hffm_flower.models.architectures import (
    ACTIVATIONS,
    ARCHITECTURES,
    KEY,
    Shape,
    halved,
    shape_of,
)
from hffm_flower.models.checkpoints import Checkpoint, find_checkpoint
from hffm_flower.models.encoders.checkpoint import Precision
from hffm_flower.models.encoders.encoder import Weights, fingerprint_of
from hffm_flower.models.prenorm import FrozenPreNorm, Sight, positions, run_layer
from hffm_flower.modules import ModuleKey

CODE: Final = "checkpoint-backbone-1"  # raise when the outputs change


class Frame(nn.Module):
    """The frozen layers and what stands in front of and behind them.

    Args:
        layers: In order.
        rest: As in `Architecture.rest`.
    """

    def __init__(self, layers: Sequence[nn.Module], rest: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        for name, part in rest.items():
            self.add_module(name, part)

    def part(self, name: str) -> nn.Module | None:
        """What is called ``name``; None if the architecture has none."""
        return self._modules.get(name)


class CheckpointBackbone:
    """The backbone that a checkpoint is; its layers are ``<model type>.0``, ``.1``, ...

    In a causal model only the last token sees all others, so token 0 is moved there.

    Args:
        source: Folder, or model of the hub.

    Raises:
        ConfigError: There is no such checkpoint, or its architecture is none of those known.
    """

    assets: tuple[str, ...] = ()
    trims: bool = True
    precisions: tuple[Precision, ...] = ("fp32", "bf16")

    def __init__(self, source: str) -> None:
        self.checkpoint: Checkpoint = find_checkpoint(source, allowed=ARCHITECTURES, key=KEY)
        self.kind = ARCHITECTURES[self.checkpoint.model_type]
        self.shape: Shape = shape_of(self.checkpoint)
        self.width = self.shape.width
        name = f"hf:{source}"
        self.native_streams = {s: name for held in self.kind.reads.values() for s in held}
        self.layers = tuple(f"{self.checkpoint.model_type}.{i}" for i in range(self.shape.layers))

    @cached_property
    def projections(self) -> Mapping[str, tuple[int, int]]:
        """Linear maps in each layer -> size of input and output."""
        return self.shape.projections(gated=self.kind.gated)

    def blocks(self) -> Mapping[ModuleKey, Callable[[], nn.Module]]:
        """None: its layers are frozen."""
        return {}

    def fingerprint(self, weights: Weights, seed: int) -> str:
        """Hex SHA-256 of all that the outputs depend on."""
        if weights == "random":
            return fingerprint_of(CODE, self.checkpoint.digest("config.json"), seed)
        return fingerprint_of(CODE, self.checkpoint.fingerprint)

    def load_frozen(self, weights: Weights, seed: int, precision: Precision = "fp32") -> Frame:
        """The network without its embeddings, from the checkpoint or drawn from ``seed``."""
        network = self.checkpoint.load(self.kind.network, weights, seed=seed)
        layers = [
            FrozenPreNorm(
                parts, self.shape.heads, head_width=self.shape.head_width,
                activation=ACTIVATIONS[self.shape.activation],
            )
            for parts in self.kind.layers(network)
        ]  # fmt: skip
        frame = Frame(layers, {n: m for n, m in self.kind.rest(network).items() if m is not None})
        if precision == "bf16":
            halved(frame)
        return frame.requires_grad_(False).eval()

    def prefix(
        self, frozen: nn.Module, x_BTD: Tensor, mask_BT: Tensor, count: int, *,
        recompute: bool = False,
    ) -> Tensor:  # fmt: skip
        """What the first ``count`` layers make of the tokens."""
        frame = cast(Frame, frozen)
        if not count:
            return x_BTD
        x_BTD, mask_BT = self._placed(x_BTD), self._placed(mask_BT)
        sight, x_BTD = self._sight(frame, x_BTD, mask_BT), self._begun(frame, x_BTD, mask_BT)
        plain = [Untuned() for _ in range(count)]
        for layer, tuning in zip(frame.layers, plain, strict=False):
            x_BTD = run_layer(layer, x_BTD, sight, tuning, pooled=False, recompute=recompute)
        return self._returned(x_BTD)

    def fuse(
        self, frozen: nn.Module, trained: Sequence[Any], x_BTD: Tensor, mask_BT: Tensor, *,
        recompute: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Run the last layers, as many as ``trained``, with what is trained in them."""
        frame = cast(Frame, frozen)
        x_BTD, mask_BT = self._placed(x_BTD), self._placed(mask_BT)
        sight = self._sight(frame, x_BTD, mask_BT)
        first = len(self.layers) - len(trained)
        if not first:
            x_BTD = self._begun(frame, x_BTD, mask_BT)
        *pairs, last = zip(list(frame.layers)[first:], trained, strict=True)
        for layer, tuning in pairs:
            x_BTD = run_layer(layer, x_BTD, sight, tuning, pooled=False, recompute=recompute)
        pooled = run_layer(last[0], x_BTD, sight, last[1], pooled=True, recompute=recompute)
        return self._closed(frame, pooled[:, 0]), self._returned(x_BTD)

    def _sight(self, frame: Frame, x_BTD: Tensor, mask_BT: Tensor) -> Sight:
        return Sight.of(mask_BT, causal=self.kind.causal, rotary=frame.part("rotary"), like=x_BTD)

    def _begun(self, frame: Frame, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """The tokens as they go into the first layer."""
        learned = frame.part("positions")
        return x_BTD if learned is None else x_BTD + learned(positions(mask_BT))

    def _closed(self, frame: Frame, x_BD: Tensor) -> Tensor:
        """The pooling token as it comes out of the network."""
        norm, pooler = frame.part("norm"), frame.part("pooler")
        x_BD = x_BD if norm is None else norm(x_BD)
        if pooler is None:
            return x_BD
        dense = cast(nn.Linear, pooler.get_submodule("dense"))
        return torch.tanh(dense(x_BD.to(dense.weight.dtype)).to(x_BD.dtype))

    def _placed(self, x: Tensor) -> Tensor:
        """With the pooling token where the architecture needs it: ``[B, T]`` or ``[B, T, D]``."""
        return x.roll(-1, 1) if self.kind.causal else x

    def _returned(self, x: Tensor) -> Tensor:
        return x.roll(1, 1) if self.kind.causal else x
