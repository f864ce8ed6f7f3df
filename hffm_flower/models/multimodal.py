"""The model: encoder tokens -> projectors -> fusion backbone -> task heads.

It is assembled from a device's profile, so that a device holds the modules that its
modalities and tasks need and no others. A missing modality is absent and masked, never
zero-filled; an example without text pools with ``prompt/cls``.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from hffm_flower.errors import ConfigError, ModuleError, one_of
from hffm_flower.models.adapters import ClsPrompt, Projector
from hffm_flower.models.backbones import BACKBONES, Backbone
from hffm_flower.models.encoders import ENCODERS
from hffm_flower.models.encoders.encoder import Stream, Tokens
from hffm_flower.models.heads import HEADS, Head
from hffm_flower.modules import ModularState, ModuleKey, ModuleKind
from hffm_flower.seeding import stream_seed
from hffm_flower.tasks import TASKS

TEXT = "text"
CLS = ModuleKey(ModuleKind.PROMPT, "cls")

_drawn: dict[tuple[object, ...], nn.Module] = {}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What all devices of a run agree on.

    Attributes:
        backbone: Name in `BACKBONES`.
        encoders: Modality -> name in `ENCODERS`.
        weights: Frozen weights: pretrained, or drawn from ``seed``.
        adapter_rank: Width of the adapters' bottleneck.
        seed: The run's seed; every initial value comes from it.
    """

    backbone: str
    encoders: Mapping[str, str]
    weights: Literal["pretrained", "random"]
    adapter_rank: int
    seed: int

    def check(self) -> None:
        """Refuse unknown names.

        Raises:
            ConfigError: An encoder or the backbone is unknown, or an encoder is given a
                modality that it does not read.
        """
        one_of("backbone", self.backbone, BACKBONES, key="model.backbone")
        for modality, name in self.encoders.items():
            one_of("encoder", name, ENCODERS, key="model.encoders")
            if ENCODERS[name].modality != modality:
                raise ConfigError(
                    f"encoder {name!r} reads {ENCODERS[name].modality}, not {modality}",
                    key="model.encoders",
                )

    def stream(self, modality: str, name: str) -> Stream:
        """Shape of a stream of tokens.

        Raises:
            ConfigError: The modality's encoder has no such stream.
        """
        encoder = self.encoders[modality]
        streams = ENCODERS[encoder].streams
        one_of(f"stream of encoder {encoder!r}", name, streams, key="model.encoders")
        return streams[name]


def streams_of(task: str, modalities: Collection[str]) -> dict[str, str]:
    """Streams that ``task`` uses on a device with ``modalities``: stream -> modality.

    Text comes first: its first token pools.
    """
    inputs = {s: m for m, s in TASKS[task].inputs.items() if m in modalities}
    return dict(sorted(inputs.items(), key=lambda item: item[1] != TEXT))


def task_modules(task: str, modalities: Collection[str], backbone: str) -> tuple[ModuleKey, ...]:
    """Modules that an example of ``task`` trains on a device with ``modalities``, sorted."""
    streams = streams_of(task, modalities)
    family = BACKBONES[backbone]
    keys = [ModuleKey(ModuleKind.PROJECTOR, s) for s in streams if s not in family.native_streams]
    if TEXT not in streams.values():
        keys.append(CLS)
    return tuple(sorted([*keys, *family.module_keys(), ModuleKey(ModuleKind.HEAD, task)]))


def module_keys(
    tasks: Iterable[str], modalities: Collection[str], backbone: str
) -> tuple[ModuleKey, ...]:
    """Modules of a device that runs ``tasks``, sorted."""
    return tuple(sorted({k for t in tasks for k in task_modules(t, modalities, backbone)}))


class MultimodalModel(nn.Module):
    """One device's modules on top of the frozen layers.

    Args:
        spec: The run's model.
        tasks: Tasks with a head here.
        modalities: Modalities with a projector here.
        frozen: The backbone's frozen part (`Backbone.load_frozen`); shared, never changed.
        keys: Modules to hold; default: those that examples with all of ``modalities`` need.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tasks: Collection[str],
        modalities: Collection[str],
        frozen: nn.Module,
        *,
        keys: Collection[ModuleKey] | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.modalities = frozenset(modalities)
        self.tasks = tuple(tasks)
        self.family: type[Backbone] = BACKBONES[spec.backbone]
        default = module_keys(tasks, modalities, spec.backbone)
        self.keys = default if keys is None else tuple(sorted(keys))
        modality_of = {s: m for t in tasks for s, m in streams_of(t, modalities).items()}
        self.parts = nn.ModuleDict({_name(key): self._make(key, modality_of) for key in self.keys})
        self.frozen = frozen

    def _make(self, key: ModuleKey, modality_of: Mapping[str, str]) -> nn.Module:
        """The module with its initial values; drawn once per process, then copied."""
        spec = self.spec
        name: tuple[object, ...] = (spec.backbone, spec.adapter_rank, spec.seed, key)
        if key.kind is ModuleKind.PROJECTOR:
            name = (*name, spec.encoders[modality_of[key.name]])
        if name not in _drawn:
            _drawn[name] = self._draw(key, modality_of)
        return copy.deepcopy(_drawn[name])

    def _draw(self, key: ModuleKey, modality_of: Mapping[str, str]) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(self.spec.seed, "init", str(key)))
            if key in self.family.module_keys():
                return self.family.make_module(self.spec.adapter_rank)
            if key == CLS:
                return ClsPrompt(self.family.width)
            if key.kind is ModuleKind.PROJECTOR:
                stream = self.spec.stream(modality_of[key.name], key.name)
                return Projector(stream.tokens, stream.width, self.family.width)
            task = TASKS[key.name]
            return cast(nn.Module, HEADS[task.head](self.family.width, len(task.answers)))

    def part(self, key: ModuleKey) -> nn.Module:
        """The module called ``key``."""
        return self.parts[_name(key)]

    def head(self, task: str) -> Head:
        """The head of ``task``."""
        return cast(Head, self.part(ModuleKey(ModuleKind.HEAD, task)))

    def forward(self, task: str, inputs: Mapping[str, Tokens]) -> Tensor:
        """Output of the task's head.

        Args:
            task: One of ``tasks``.
            inputs: Stream -> tokens ``[B, T, D]`` with mask ``[B, T]``; those that are
                there are fused, the others are absent.
        """
        streams = [s for s in streams_of(task, self.modalities) if s in inputs]
        tokens, masks = [], []
        if TEXT not in (streams_of(task, self.modalities)[s] for s in streams):
            some = inputs[streams[0]].values
            tokens.append(self.part(CLS)(some.shape[0]))
            masks.append(torch.ones(some.shape[0], 1, dtype=torch.bool, device=some.device))
        first = 0
        for stream in streams:
            first = sum(t.shape[1] for t in tokens)
            values = inputs[stream].values
            if stream not in self.family.native_streams:
                values = self.part(ModuleKey(ModuleKind.PROJECTOR, stream))(values)
            tokens.append(values)
            masks.append(inputs[stream].mask)
        layers = [self.part(key) for key in self.family.module_keys()]
        pooled_BD, fused_BTD = self.family.fuse(
            self.frozen, layers, torch.cat(tokens, 1), torch.cat(masks, 1)
        )
        return self.head(task)(pooled_BD, fused_BTD[:, first:])

    def state(self, keys: Iterable[ModuleKey] | None = None) -> ModularState:
        """Copies of the modules' tensors, float32, on the host."""
        chosen = self.keys if keys is None else sorted(keys)
        return {
            key: {
                name: tensor.detach().to("cpu", torch.float32).numpy().copy()
                for name, tensor in self.part(key).state_dict().items()
            }
            for key in chosen
        }

    def load(self, state: ModularState) -> None:
        """Copy ``state`` in, all or nothing; modules that it does not name stay as they are.

        Raises:
            ModuleError: It names a module that is not here, or tensors that do not fit.
        """
        extra = [str(k) for k in state if k not in self.keys]
        if extra:
            raise ModuleError(
                f"this model has no {', '.join(extra)}; it has {', '.join(map(str, self.keys))}"
            )
        for key, tensors in state.items():
            own = self.part(key).state_dict()
            if own.keys() != tensors.keys() or any(
                tuple(own[n].shape) != np.shape(a) for n, a in tensors.items()
            ):
                raise ModuleError(f"tensors of {key} do not fit this model")
        for key, tensors in state.items():
            self.part(key).load_state_dict(
                {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in tensors.items()}
            )


def _name(key: ModuleKey) -> str:
    return str(key).replace(".", ":")
