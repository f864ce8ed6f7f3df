"""Public networks that LoRA factors of a run are updates of, and the names of their layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from hffm_flower.errors import ConfigError
from hffm_flower.models.backbones import BERT_NAMES
from hffm_flower.models.encoders import (
    PREFIX,
    CheckpointEncoder,
    encoder_type,
    lite0,
    minilm,
    speech,
)
from hffm_flower.models.parts import FACTORS, ModelSpec
from hffm_flower.modules import ModuleKey, ModuleKind


@dataclass(frozen=True, slots=True)
class Base:
    """A network as others know it.

    Attributes:
        modality: What it reads.
        origin: Its common name.
        about: What it is, in a line.
        loading: Lines of Python that leave it in ``base``.
        layer_name: Name of a tail's layer, and the cut -> name of that layer in the network.
    """

    modality: str
    origin: str
    about: str
    loading: str
    layer_name: Callable[[str, int], str]


BASES: Final[Mapping[str, Base]] = {
    "minilm": Base(
        "text",
        "sentence-transformers/all-MiniLM-L6-v2",
        "`BertModel` of all-MiniLM-L6-v2; layers 0-3 are the text encoder, 4-5 the backbone",
        "from transformers import BertModel\n"
        "from hffm_flower.assets import asset_root\n"
        'base = BertModel.from_pretrained(asset_root("minilm") / "model")',
        minilm.layer_name,
    ),
    "lite0": Base(
        "image",
        "efficientnet-lite0",
        "`EfficientNet` of the package efficientnet-lite-pytorch, with its 1 x 1 convolutions as "
        "`nn.Conv2d`, which is what `plain` does: peft cannot build factors of the package's class",
        "from hffm_flower.models.encoders.lite0 import plain, pretrained\n"
        "base = plain(pretrained())",
        lite0.layer_name,
    ),
    "speech": Base(
        "audio",
        "speech_embedding",
        "`SpeechEmbedding`, which reads mel spectrograms",
        "from hffm_flower.models.encoders.speech import pretrained\nbase = pretrained()",
        speech.layer_name,
    ),
}
"""Packaged encoder -> the network of which it is a part."""

BACKBONE_BASES: Final[Mapping[str, str]] = {"minilm-fusion": "minilm"}
"""Backbone -> the name in `BASES` of the network of which its layers are."""


def whole_name(key: ModuleKey, spec: ModelSpec) -> str:
    """Name of a LoRA module without the ending that names one of its factors."""
    for ending in FACTORS[spec.lora.rule]:
        if ending and key.name.endswith(ending):
            return key.name.removesuffix(ending)
    return key.name


def base_of(name: str, spec: ModelSpec) -> Base:
    """The network called ``name``: in ``BASES``, or the checkpoint that an encoder reads."""
    if name in BASES:
        return BASES[name]
    modality = next(m for m, encoder in spec.encoders.items() if encoder == name)
    kind = encoder_type(modality, name)
    assert issubclass(kind, CheckpointEncoder)
    network, held = kind.anatomy.network, kind.checkpoint
    origin, at = held.repository or str(held.folder), ""
    if held.repository and (revision := held.source.partition("@")[2]):
        at = f", revision={revision!r}"
    return Base(
        modality,
        origin,
        f"`{network}` of {origin}",
        f"from transformers import {network}\nbase = {network}.from_pretrained({origin!r}{at})",
        kind.layer_name,
    )


def base_layer(key: ModuleKey, layer: str, spec: ModelSpec) -> tuple[str, str]:
    """Where a layer of a LoRA module is: name of the network, and the layer's name there.

    Args:
        key: An adapter or an encoder with LoRA factors.
        layer: Layer of it, as `hffm_flower.lora.layer_of` gives it.
        spec: The run's model.

    Raises:
        ConfigError: The network is none of ``BASES``.
    """
    name = whole_name(key, spec)
    if key.kind is ModuleKind.ADAPTER:
        base = _known("backbone", spec.backbone, BACKBONE_BASES)
        return BACKBONE_BASES[base], f"encoder.layer.{name.split('.')[1]}.{BERT_NAMES[layer]}"
    base = spec.encoders[name]
    if not base.startswith(PREFIX):
        _known("encoder", base, BASES)
    return base, base_of(base, spec).layer_name(layer, spec.tune[name].blocks)


def _known(what: str, name: str, known: Mapping[str, object]) -> str:
    if name not in known:
        raise ConfigError(
            f"LoRA of {what} {name!r} cannot be exported yet; that can: {', '.join(known)}",
            key=f"model.{what}s" if what == "encoder" else "model.backbone",
        )
    return name
