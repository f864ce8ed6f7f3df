"""What of an encoder's tail is trained: all of its weights, or low-rank updates of them.

Source of LoRA: Hu et al. 2021, arXiv 2106.09685; of the rank-stabilised scaling
``alpha / sqrt(rank)``: Kalajdzievski 2023, arXiv 2312.03732.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Self

import torch
from torch import Tensor, nn

from hffm_flower.errors import ConfigError, ModuleError

FORMS: Final = "'last:N', 'lora:R' or 'lora:R:N', for the last N blocks and a rank R, both >= 1"
_COUNT: Final = r"([1-9][0-9]{0,5})"
_LAST: Final = re.compile(f"last:{_COUNT}")
_LORA: Final = re.compile(f"lora:{_COUNT}(?::{_COUNT})?")


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the last blocks of an encoder are trained.

    Attributes:
        blocks: How many blocks are cut off, >= 1.
        rank: Rank of the update of each target layer; 0: all weights are trained.
        targets: Patterns of the layers that are updated, matched as file names are.
    """

    blocks: int
    rank: int = 0
    targets: tuple[str, ...] = ("*",)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``last:N``, ``lora:R`` (of the last block) or ``lora:R:N``.

        Raises:
            ConfigError: ``text`` is none of these.
        """
        if last := _LAST.fullmatch(text):
            return cls(int(last[1]))
        if lora := _LORA.fullmatch(text):
            return cls(int(lora[2] or 1), rank=int(lora[1]))
        raise ConfigError(f"cannot tune {text!r}; allowed: {FORMS}", key="model.tune")


def tunable(tail: nn.Module) -> tuple[str, ...]:
    """Names of the Linear and Conv2d layers of an untouched tail, in order.

    Without the layer inside torch's own attention, which reads its weights and never calls it.
    """
    inside = {
        f"{n}.out_proj" for n, m in tail.named_modules() if isinstance(m, nn.MultiheadAttention)
    }
    linear = (n for n, m in tail.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))
    return tuple(n for n in linear if n not in inside)


def trained_tail(tail: nn.Module, tuning: Tuning, *, alpha: float, rslora: bool) -> nn.Module:
    """Free what ``tuning`` says, in place, and return ``tail``; at step 0 it gives the same.

    Without a rank that is every parameter, those of BatchNorm and LayerNorm too. With a rank
    each target W gets ``W + s B A``, B = 0, and A is drawn from torch's global stream. Grouped
    convolutions are no targets: one pair of factors would mix the groups that W keeps apart.

    Args:
        tail: An encoder's untouched tail.
        tuning: What is trained. A target pattern need not match here, if another one does.
        alpha: Sets the scaling: s = alpha / rank.
        rslora: s = alpha / sqrt(rank) instead.

    Raises:
        ConfigError: No layer matches the targets, or the rank is larger than a target.
    """
    if tuning.rank == 0:
        return tail.requires_grad_(True)
    names = _targets(tail, tuning)
    peft = importlib.import_module("peft")  # takes seconds
    config = peft.LoraConfig(
        r=tuning.rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        use_rslora=rslora,
        target_modules="|".join(map(re.escape, names)),  # a list would match endings of names
    )
    injected: nn.Module = peft.inject_adapter_in_model(config, tail)
    return injected


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters that are trained, detached but not copied; buffers are never among them.

    Those of LoRA are named ``<layer>.lora_A.weight`` [rank, in] and ``<layer>.lora_B.weight``
    [out, rank]; of a convolution, [rank, in, height, width] and [out, rank, 1, 1].
    """
    return {name: parameter.detach() for name, parameter in trained_parameters(module).items()}


def load_trained(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy in what `trained_state` gave, all or nothing.

    Raises:
        ModuleError: Other names or shapes than those of the trained parameters.
    """
    own = trained_parameters(module)
    if own.keys() != tensors.keys():
        odd = ", ".join(sorted(own.keys() ^ tensors.keys()))
        raise ModuleError(f"tensors do not fit the trained parameters; missing or unknown: {odd}")
    for name, parameter in own.items():
        if parameter.shape != tensors[name].shape:
            raise ModuleError(
                f"{name} is {list(tensors[name].shape)}; the trained parameter is "
                f"{list(parameter.shape)}"
            )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters themselves, for an optimizer; names as in `trained_state`.

    The name of the library's one adapter is left out of theirs.
    """
    named = module.named_parameters()
    return {name.replace(".default.", "."): p for name, p in named if p.requires_grad}


def _targets(tail: nn.Module, tuning: Tuning) -> list[str]:
    """Layers that get an update.

    Raises:
        ConfigError: As in `trained_tail`.
    """
    layers = {name: tail.get_submodule(name) for name in tunable(tail)}
    sound = {n: m for n, m in layers.items() if getattr(m, "groups", 1) == 1}
    names = [n for n in sound if any(fnmatchcase(n, p) for p in tuning.targets)]
    if not names:
        raise ConfigError(
            f"no layer of this encoder matches {' '.join(tuning.targets) or 'an empty list'}; "
            f"layers that can be targets: {', '.join(sound)}",
            key="model.tune-targets",
        )
    for name in names:
        weight = sound[name].weight
        assert isinstance(weight, Tensor)
        rows, columns = weight.flatten(1).shape
        if tuning.rank > min(rows, columns):
            raise ConfigError(
                f"rank {tuning.rank} is too large for layer {name!r}, whose weights are "
                f"[{rows}, {columns}]; allowed: 1 to {min(rows, columns)}",
                key="model.tune",
            )
    return names
