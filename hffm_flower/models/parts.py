"""Which modules a model is made of: the run's choice, and what each device holds of it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, Literal

from hffm_flower.errors import ConfigError, one_of
from hffm_flower.lora import Scaling
from hffm_flower.models.adapters import WIRINGS
from hffm_flower.models.backbones import BACKBONES, Backbone, Precision, backbone_of
from hffm_flower.models.encoders import encoder_type
from hffm_flower.models.encoders.encoder import Stream
from hffm_flower.models.encoders.tails import Tuning
from hffm_flower.modules import ModuleKey, ModuleKind
from hffm_flower.tasks import TASKS

TEXT: Final = "text"
CLS: Final = ModuleKey(ModuleKind.PROMPT, "cls")
PROMPTS: Final = ("task", "modality", "missing")
"""What a soft prompt may stand for."""
FACTORS: Final[Mapping[str, tuple[str, ...]]] = {
    "lora-exact": ("",),
    "lora-naive": ("",),
    "lora-ffa": (".B",),
    "lora-alternate": (".A", ".B"),
    "lora-share-a": (".A", ".B"),
}
"""Rule -> endings of the modules into which it divides LoRA factors; empty: both in one."""

Adapter = Literal["bottleneck", "lora", "experts", "none"]


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """LoRA in a run.

    Attributes:
        rule: Name in `FACTORS`.
        ranks: Ranks that devices have.
        alpha: Numerator of the scale.
        scaling: Denominator of the scale: the rank, or its root.
        targets: Patterns of the backbone's projections that are adapted.
        tail_targets: Patterns of the encoders' layers that are adapted.
    """

    rule: str = "lora-exact"
    ranks: tuple[int, ...] = (8,)
    alpha: float = 16.0
    scaling: Scaling = Scaling.STANDARD
    targets: tuple[str, ...] = ("query", "value")
    tail_targets: tuple[str, ...] = ("*",)

    @property
    def most(self) -> int:
        """Highest rank of a device."""
        return max(self.ranks)

    def chosen(self, backbone: str) -> tuple[str, ...]:
        """Projections of a backbone's layers that are adapted."""
        names = backbone_of(backbone).projections
        return tuple(n for n in names if any(fnmatchcase(n, p) for p in self.targets))

    def check(self, backbone: str) -> None:
        """Refuse targets that match nothing, and ranks above a projection's size.

        Raises:
            ConfigError: The message has the names that exist, or the size.
        """
        projections = backbone_of(backbone).projections
        if not self.targets:
            raise ConfigError(
                f"no projection is named; backbone {backbone!r} has {', '.join(projections)}",
                key="model.lora-targets",
            )
        for pattern in self.targets:
            if not any(fnmatchcase(name, pattern) for name in projections):
                raise ConfigError(
                    f"{pattern!r} matches no projection of backbone {backbone!r}; it has "
                    f"{', '.join(projections)}",
                    key="model.lora-targets",
                )
        for name in self.chosen(backbone):
            if self.most > (size := min(projections[name])):
                raise ConfigError(
                    f"rank {self.most} is above the size {size} of {name!r}; allowed: 1 to {size}",
                    key="model.lora-ranks",
                )


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What all devices of a run agree on.

    Attributes:
        backbone: Name of a `Backbone`, as `backbone_of` takes it.
        encoders: Modality -> name, as `encoder_type` takes it.
        weights: Frozen weights: pretrained, or drawn from ``seed``.
        adapter_rank: Width of a bottleneck: of the adapters, of the experts.
        seed: The run's seed; every initial value comes from it.
        adapter: What is trained in the backbone's frozen layers.
        lora: LoRA, in the backbone and in encoders.
        tune: Modality -> what of its encoder is trained.
        prompts: What soft prompts stand for -> how many tokens each has.
        experts: How many there are.
        experts_per_example: How many an example is routed to.
        whole: No modules: every device holds the whole model, absent inputs are zeros (the
            baseline that modules are compared with).
        dropped: Whether training leaves optional modalities out at random.
        adapter_layers: How many of the backbone's last layers are adapted; 0: all.
        wiring: How a bottleneck stands in its layer, a name in `WIRINGS`.
        precision: In which the backbone's frozen weights are held.
    """

    backbone: str
    encoders: Mapping[str, str]
    weights: Literal["pretrained", "random"]
    adapter_rank: int
    seed: int
    adapter: Adapter = "bottleneck"
    lora: LoraSpec = LoraSpec()
    tune: Mapping[str, Tuning] = field(default_factory=dict)
    prompts: Mapping[str, int] = field(default_factory=dict)
    experts: int = 4
    experts_per_example: int = 2
    whole: bool = False
    dropped: bool = False
    adapter_layers: int = 0
    wiring: str = "both"
    precision: Precision = "fp32"

    @property
    def family(self) -> Backbone:
        """The backbone."""
        return backbone_of(self.backbone)

    @property
    def layers(self) -> tuple[str, ...]:
        """Frozen layers of the backbone in which something is trained: its last ones."""
        return self.family.layers[-self.adapter_layers :]

    @property
    def untouched(self) -> int:
        """Number of frozen layers in front of these."""
        return len(self.family.layers) - len(self.layers)

    def check(self) -> None:
        """Refuse unknown names, and settings that do not fit each other.

        Raises:
            ConfigError: An encoder or the backbone is unknown, or an encoder is given a
                modality that it does not read; ranks, targets, experts or prompts that cannot be.
        """
        backbone_of(self.backbone)
        for modality, name in self.encoders.items():
            encoder_type(modality, name)
        self._check_adapter()
        for modality, tuning in self.tune.items():
            if modality not in self.encoders:
                raise ConfigError(
                    f"{modality!r} has no encoder; tuned can be: {', '.join(self.encoders)}",
                    key="model.tune",
                )
            encoder_type(modality, self.encoders[modality]).cut_streams(tuning.blocks)
        for name in self.prompts:
            one_of("prompt", name, PROMPTS, key="model.prompts")

    def _check_adapter(self) -> None:
        family = self.family
        if self.adapter in ("lora", "experts") and not family.layers:
            able = ", ".join([*(name for name, f in BACKBONES.items() if f.layers), "hf:SOURCE"])
            raise ConfigError(
                f"backbone {self.backbone!r} has no frozen layers for {self.adapter!r}; "
                f"backbones that have: {able}",
                key="model.adapter",
            )
        if self.adapter_layers > len(family.layers):
            raise ConfigError(
                f"{self.adapter_layers} is above the number of frozen layers of backbone "
                f"{self.backbone!r}, {len(family.layers)}; 0: all",
                key="model.adapter-layers",
            )
        one_of("wiring", self.wiring, WIRINGS, key="model.adapter-wiring")
        if self.wiring != "both" and (self.adapter != "bottleneck" or not family.layers):
            raise ConfigError(
                f"wiring {self.wiring!r} is of bottlenecks in frozen layers; this is adapter "
                f"{self.adapter!r} in backbone {self.backbone!r}",
                key="model.adapter-wiring",
            )
        one_of("precision", self.precision, family.precisions, key="model.backbone-precision")
        if self.adapter == "lora":
            self.lora.check(self.backbone)
        if self.adapter == "experts" and self.experts_per_example > self.experts:
            raise ConfigError(
                f"{self.experts_per_example} is above the number of experts, {self.experts}",
                key="model.experts-per-example",
            )

    def stream(self, modality: str, name: str) -> Stream:
        """Shape of a stream of tokens.

        Raises:
            ConfigError: The modality's encoder has no such stream.
        """
        encoder = self.encoders[modality]
        streams = encoder_type(modality, encoder).streams
        one_of(f"stream of encoder {encoder!r}", name, streams, key="model.encoders")
        return streams[name]

    def head_size(self, task: str) -> int:
        """How many answers, words, quantities or samples, or how wide what is to be found."""
        known = TASKS[task]
        if known.target:
            return self.stream(known.target, known.inputs[known.target]).width
        return len(known.answers) or len(known.parts) or known.horizon

    def native(self, modality: str, stream: str) -> bool:
        """Whether a stream goes into the backbone as it is, without a projector."""
        return self.family.native_streams.get(stream) == self.encoders[modality]

    def tuned(self, modality: str, stream: str) -> bool:
        """Whether a stream passes through a part of its encoder that is trained."""
        if modality not in self.tune:
            return False
        encoder = encoder_type(modality, self.encoders[modality])
        return stream in encoder.passing(self.tune[modality].blocks)


def streams_of(task: str, modalities: Collection[str]) -> dict[str, str]:
    """Streams that ``task`` uses on a device with ``modalities``: stream -> modality.

    Text comes first: its first token pools.
    """
    inputs = {s: m for m, s in TASKS[task].fused.items() if m in modalities}
    return dict(sorted(inputs.items(), key=lambda item: item[1] != TEXT))


def variants(task: str, modalities: Collection[str], *, dropped: bool) -> list[frozenset[str]]:
    """Sets of modalities that an example of ``task`` may have in training, the full one first."""
    has = frozenset(TASKS[task].fused) & frozenset(modalities)
    optional = sorted(has & set(TASKS[task].optional)) if dropped else []
    lost = itertools.chain.from_iterable(
        itertools.combinations(optional, n) for n in range(len(optional) + 1)
    )
    return [has - set(each) for each in lost]


def adapter_keys(spec: ModelSpec, experts: Collection[int] | None = None) -> list[ModuleKey]:
    """Modules of the backbone, in the order of its layers; of experts those in ``experts``."""
    family = spec.family
    if not family.layers:
        return list(family.blocks())
    if spec.adapter == "experts":
        held = range(spec.experts) if experts is None else sorted(experts)
        return [ModuleKey(ModuleKind.EXPERT, str(j)) for j in held]
    if spec.adapter == "none":
        return []
    endings = FACTORS[spec.lora.rule] if spec.adapter == "lora" else ("",)
    return [ModuleKey(ModuleKind.ADAPTER, f"{n}{e}") for n in spec.layers for e in endings]


def task_modules(
    task: str,
    modalities: Collection[str],
    spec: ModelSpec,
    experts: Collection[int] | None = None,
) -> tuple[ModuleKey, ...]:
    """Modules that an example of ``task`` with ``modalities`` trains, sorted.

    Args:
        task: Name in `TASKS`.
        modalities: What the example has.
        spec: The run's model.
        experts: Experts that are on the device; default: all.
    """
    streams = streams_of(task, modalities)
    keys = [ModuleKey(ModuleKind.PROJECTOR, s) for s, m in streams.items() if not spec.native(m, s)]
    for stream, modality in streams.items():
        if spec.tuned(modality, stream):
            endings = FACTORS[spec.lora.rule] if spec.tune[modality].rank else ("",)
            keys += [ModuleKey(ModuleKind.ENCODER, f"{modality}{e}") for e in endings]
    if TEXT not in streams.values():
        keys.append(CLS)
    keys += prompt_keys(task, modalities, spec)
    keys += [*adapter_keys(spec, experts), ModuleKey(ModuleKind.HEAD, task)]
    return tuple(sorted(set(keys)))


def behind_prefix(task: str, modalities: Collection[str], spec: ModelSpec) -> bool:
    """Whether examples come as they leave the layers in front of the first adapted one.

    So it is where nothing that is trained stands in front of these: no projector, no prompt, no
    trained encoder. What comes out of them is then the same in every round, and is cached.
    """
    streams = streams_of(task, modalities)
    return (
        spec.untouched > 0
        and not (spec.dropped or spec.whole)
        and TEXT in streams.values()
        and all(spec.native(m, s) and not spec.tuned(m, s) for s, m in streams.items())
        and not prompt_keys(task, modalities, spec)
    )


def prompt_keys(task: str, modalities: Collection[str], spec: ModelSpec) -> list[ModuleKey]:
    """Soft prompts of an example, in the order in which they are fused."""
    inputs = TASKS[task].fused
    names = {
        "task": [task],
        "modality": [m for m in inputs if m in modalities],
        "missing": [m for m in inputs if m not in modalities and m in spec.encoders],
    }
    return [
        ModuleKey(ModuleKind.PROMPT, f"{what}.{name}")
        for what in PROMPTS
        if spec.prompts.get(what)
        for name in sorted(names[what])
    ]


def module_keys(
    tasks: Iterable[str],
    modalities: Collection[str],
    spec: ModelSpec,
    experts: Collection[int] | None = None,
) -> tuple[ModuleKey, ...]:
    """Modules of a device that runs ``tasks``, sorted."""
    if spec.whole:
        modalities = tuple(spec.encoders)
    return tuple(
        sorted(
            {
                key
                for task in tasks
                for has in variants(task, modalities, dropped=spec.dropped and not spec.whole)
                for key in task_modules(task, has, spec, experts)
            }
        )
    )
