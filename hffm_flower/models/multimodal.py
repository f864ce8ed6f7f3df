"""The model: encoder tokens -> projectors -> fusion backbone -> task heads.

It is assembled from a device's profile, so that a device holds the modules that its
modalities and tasks need and no others. A missing modality is absent and masked, never
zero-filled; an example without text pools with ``prompt/cls``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hffm_flower.errors import ModuleError
from hffm_flower.lora import compress, fit, is_lora, pad, rank_of
from hffm_flower.models.adapters import ExpertTuning, Untuned
from hffm_flower.models.backbones import Backbone
from hffm_flower.models.drawing import Tails, draw_part
from hffm_flower.models.encoders.encoder import Tokens
from hffm_flower.models.encoders.tails import trained_parameters
from hffm_flower.models.experts import ExpertLayer, ExpertModule, Routing
from hffm_flower.models.heads import Head
from hffm_flower.models.parts import (
    CLS,
    FACTORS,
    TEXT,
    ModelSpec,
    behind_prefix,
    module_keys,
    prompt_keys,
    streams_of,
)
from hffm_flower.modules import ModularState, ModuleKey, ModuleKind, ModuleState


class MultimodalModel(nn.Module):
    """One device's modules on top of the frozen layers.

    Args:
        spec: The run's model.
        tasks: Tasks with a head here.
        modalities: Modalities with a projector here.
        frozen: The backbone's frozen part (`Backbone.load_frozen`); shared, never changed.
        keys: Modules to hold; default: those that examples with all of ``modalities`` need.
        rank: LoRA rank of this device; 0: the highest of the run.
        tails: Where the encoders' last blocks come from, if any is trained.

    Attributes:
        routing: Which experts the last `forward` used; None without experts.
        recompute: Whether the backward pass computes inner states of layers again, to keep less.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tasks: Collection[str],
        modalities: Collection[str],
        frozen: nn.Module,
        *,
        keys: Collection[ModuleKey] | None = None,
        rank: int = 0,
        tails: Tails | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.modalities = frozenset(spec.encoders if spec.whole else modalities)
        self.tasks = tuple(tasks)
        self.family: Backbone = spec.family
        self.rank = rank or spec.lora.most
        default = module_keys(tasks, modalities, spec)
        self.keys = default if keys is None else tuple(sorted(keys))
        self._modality_of = {s: m for t in tasks for s, m in streams_of(t, self.modalities).items()}
        self.parts = nn.ModuleDict()
        for key in self.keys:
            if _name(self._whole(key)) not in self.parts:
                self.parts[_name(self._whole(key))] = self._draw(self._whole(key), tails)
        self.frozen = frozen
        self.routing: Routing | None = None
        self.recompute = False
        self._initial = {k: s for k, s in self.state().items() if is_lora(s)}

    def _whole(self, key: ModuleKey) -> ModuleKey:
        """The key without the ending that names one LoRA factor."""
        if key.kind in (ModuleKind.ADAPTER, ModuleKind.ENCODER) and key.name[-2:] in (".A", ".B"):
            return ModuleKey(key.kind, key.name[:-2])
        return key

    def _draw(self, key: ModuleKey, tails: Tails | None) -> nn.Module:
        modality = self._modality_of.get(key.name, key.name)
        return draw_part(key, self.spec, modality=modality, rank=self.rank, tails=tails)

    def part(self, key: ModuleKey) -> nn.Module:
        """The module called ``key``; for one LoRA factor, the part with both."""
        return self.parts[_name(self._whole(key))]

    def trained(self, key: ModuleKey) -> dict[str, Tensor]:
        """The module's parameters, by name."""
        part = self.part(key)
        named: dict[str, Tensor] = dict(trained_parameters(part))
        if key == self._whole(key):
            return named
        return {n: p for n, p in named.items() if f"lora_{key.name[-1]}." in n}

    def parameters_of(self, keys: Iterable[ModuleKey]) -> dict[str, Tensor]:
        """Parameters of several modules, ``kind/name/tensor`` -> parameter."""
        return {f"{k}/{n}": p for k in sorted(keys) for n, p in self.trained(k).items()}

    def head(self, task: str) -> Head:
        """The head of ``task``."""
        return cast(Head, self.part(ModuleKey(ModuleKind.HEAD, task)))

    def forward(self, task: str, inputs: Mapping[str, Tokens]) -> Tensor:
        """Output of the task's head.

        Args:
            task: One of ``tasks``.
            inputs: Stream -> tokens ``[B, T, D]`` with mask ``[B, T]``; those that are
                there are fused, the others are absent. Where the encoder is trained, tokens
                as they go into its last blocks; `behind_prefix`, as they go into the first
                adapted layer.
        """
        streams = {s: m for s, m in streams_of(task, self.modalities).items() if s in inputs}
        some = next(iter(inputs.values())).values
        tokens = {s: self._encoded(s, m, inputs[s]) for s, m in streams.items()}
        if self.spec.whole:
            absent = {s: m for s, m in streams_of(task, self.modalities).items() if s not in inputs}
            tokens |= {s: self._zeros(s, m, some) for s, m in absent.items()}
            streams = streams_of(task, self.modalities)
        blocks = []
        if TEXT not in streams.values():
            blocks.append(_all(self.part(CLS)(some.shape[0])))
        prompts = [
            _all(self.part(k)(some.shape[0]))
            for k in prompt_keys(task, frozenset(streams.values()), self.spec)
        ]
        if blocks:
            blocks += prompts
        first = 0
        for stream, modality in streams.items():
            first = sum(block.values.shape[1] for block in blocks)
            values = tokens[stream].values
            if not self.spec.native(modality, stream):
                values = self.part(ModuleKey(ModuleKind.PROJECTOR, stream))(values)
            blocks.append(Tokens(values, tokens[stream].mask))
            blocks += prompts if modality == TEXT else []
        x_BTD = torch.cat([block.values for block in blocks], 1)
        mask_BT = torch.cat([block.mask for block in blocks], 1)
        if self.spec.untouched and not behind_prefix(task, set(streams.values()), self.spec):
            x_BTD = self.family.prefix(
                self.frozen, x_BTD, mask_BT, self.spec.untouched, recompute=self.recompute
            )
        pooled_BD, fused_BTD = self.family.fuse(
            self.frozen, self._layers(), x_BTD, mask_BT, recompute=self.recompute
        )
        output: Tensor = self.head(task)(pooled_BD, fused_BTD[:, first:])
        return output

    def trimmed(self, inputs: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """Native streams of a batch without the places at which no example has a token.

        It saves work and changes no more than rounding does.
        """
        kept = dict(inputs)
        for stream, tokens in inputs.items():
            modality = self._modality_of.get(stream)
            if self.family.trims and modality and self.spec.native(modality, stream):
                least = int(tokens.mask.any(0).nonzero().max()) + 1
                kept[stream] = Tokens(tokens.values[:, :least], tokens.mask[:, :least])
        return kept

    def _encoded(self, stream: str, modality: str, tokens: Tokens) -> Tokens:
        """Tokens behind the trained last blocks of their encoder, if there are any."""
        if not self.spec.tuned(modality, stream):
            return tokens
        encoded: Tokens = self.part(ModuleKey(ModuleKind.ENCODER, modality))(stream, tokens)
        return encoded

    def _zeros(self, stream: str, modality: str, like: Tensor) -> Tokens:
        shape = self.spec.stream(modality, stream)
        return _all(like.new_zeros(like.shape[0], shape.tokens, shape.width))

    def _layers(self) -> Sequence[Any]:
        """What is trained in each layer of the backbone."""
        family, spec = self.family, self.spec
        if not family.layers:
            return [self.part(key) for key in family.blocks()]
        if spec.adapter == "none":
            return [Untuned() for _ in spec.layers]
        if spec.adapter == "experts":
            self.routing = Routing()
            held = [cast(ExpertModule, self.part(k)) for k in self.experts]
            k = spec.experts_per_example
            return [ExpertTuning(ExpertLayer(n, held, k, self.routing)) for n in spec.layers]
        return [self.parts[_name(ModuleKey(ModuleKind.ADAPTER, n))] for n in spec.layers]

    @property
    def experts(self) -> tuple[ModuleKey, ...]:
        """Experts that are here, in the order of the routing's columns."""
        held = [key for key in self.keys if key.kind is ModuleKind.EXPERT]
        return tuple(sorted(held, key=lambda key: int(key.name)))

    def state(self, keys: Iterable[ModuleKey] | None = None) -> ModularState:
        """Copies of the modules' tensors, float32, on the host."""
        chosen = self.keys if keys is None else sorted(keys)
        return {
            key: {
                name: tensor.detach().to("cpu", torch.float32).numpy().copy()
                for name, tensor in self.trained(key).items()
            }
            for key in chosen
        }

    def initial(self, keys: Iterable[ModuleKey]) -> ModularState:
        """Like `state`, of a new model: LoRA without its null directions, whatever the rank."""
        lora = self.spec.lora
        return {
            key: compress(state, lora.scaling) if self._mixes(key) else state
            for key, state in self.state(keys).items()
        }

    def load(self, state: ModularState) -> None:
        """Copy ``state`` in, all or nothing; modules that it does not name stay as they are.

        LoRA of another rank is brought to that of this model: its best approximation, or filled
        up with the rows of A with which this model began.

        Raises:
            ModuleError: It names a module that is not here, or tensors that do not fit.
        """
        extra = [str(k) for k in state if k not in self.keys]
        if extra:
            raise ModuleError(
                f"this model has no {', '.join(extra)}; it has {', '.join(map(str, self.keys))}"
            )
        fitted = {key: self._fitted(key, tensors) for key, tensors in state.items()}
        for key, tensors in fitted.items():
            own = self.trained(key)
            if own.keys() != tensors.keys() or any(
                tuple(own[n].shape) != np.shape(a) for n, a in tensors.items()
            ):
                raise ModuleError(f"tensors of {key} do not fit this model")
        with torch.no_grad():
            for key, tensors in fitted.items():
                own = self.trained(key)
                for name, array in tensors.items():
                    own[name].copy_(torch.from_numpy(np.asarray(array, order="C")))

    @property
    def ranks(self) -> dict[ModuleKey, int]:
        """Modules of LoRA factors whose rank may differ between devices -> their rank here."""
        return {key: rank_of(state) for key, state in self._initial.items() if self._mixes(key)}

    def _mixes(self, key: ModuleKey) -> bool:
        """Whether the module's rank may differ between devices."""
        return key in self._initial and FACTORS[self.spec.lora.rule] == ("",)

    def _fitted(self, key: ModuleKey, tensors: ModuleState) -> ModuleState:
        if not self._mixes(key) or not is_lora(tensors):
            return tensors
        own, scaling = self._initial[key], self.spec.lora.scaling
        rank = rank_of(own)
        return pad(fit(tensors, rank, scaling), rank, own, scaling)


def _all(values: Tensor) -> Tokens:
    """Tokens of which none is missing."""
    return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device))


def _name(key: ModuleKey) -> str:
    return str(key).replace(".", ":")
