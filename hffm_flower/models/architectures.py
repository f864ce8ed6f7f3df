"""Architectures of `transformers` that can be a backbone: where each keeps what.

Only what is read from here differs between them; how they are run is in `checkpoint_backbones`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hffm_flower.errors import ConfigError, one_of
from hffm_flower.models.checkpoints import Checkpoint

Parts = Mapping[str, nn.Module]
KEY: Final = "model.backbone"

ACTIVATIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
"""Name in a configuration -> function."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a checkpoint's layers.

    Attributes:
        layers: How many there are.
        width: D, of the tokens.
        heads: Of queries.
        groups: Heads of keys and values; as many as of queries, or fewer that are shared.
        head_width: Width of a head.
        inner: Width within the FFN.
        activation: Name in `ACTIVATIONS`.
    """

    layers: int
    width: int
    heads: int
    groups: int
    head_width: int
    inner: int
    activation: str

    def projections(self, *, gated: bool) -> dict[str, tuple[int, int]]:
        """Linear maps of a layer -> size of input and output."""
        asked, kept = self.heads * self.head_width, self.groups * self.head_width
        sizes = {
            "query": (self.width, asked),
            "key": (self.width, kept),
            "value": (self.width, kept),
            "attention_out": (asked, self.width),
            "up": (self.width, self.inner),
            "down": (self.inner, self.width),
        }
        return sizes | ({"gate": (self.width, self.inner)} if gated else {})


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to take a network of `transformers` apart.

    Attributes:
        network: Its class there.
        depth: Number of layers, as its configuration calls it.
        reads: Modalities whose tokens its own embeddings make -> streams of them.
        causal: Whether a token sees only those before it; then the pooling token comes last.
        gated: Whether the FFN has a gate.
        shape: Configuration -> sizes; ConfigError for a variant that is not supported.
        layers: The network -> parts of each of its layers, by the names of `FrozenPreNorm`.
        rest: The network -> ``norm`` behind the last layer, and if it has them ``pooler``,
            ``positions`` (learned, added to the tokens) and ``rotary``.
    """

    network: str
    depth: str
    reads: Mapping[str, tuple[str, ...]]
    causal: bool
    gated: bool
    shape: Callable[[Checkpoint], Shape]
    layers: Callable[[Any], list[Parts]]
    rest: Callable[[Any], Parts]


def _shape(checkpoint: Checkpoint) -> Shape:
    """Sizes under the names that most configurations use."""
    config = checkpoint.config
    heads = int(config.num_attention_heads)
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    one_of("activation", config.hidden_act, ACTIVATIONS, key=KEY)
    return Shape(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=heads,
        groups=getattr(config, "num_key_value_heads", None) or heads,
        head_width=int(head_width),
        inner=config.intermediate_size,
        activation=config.hidden_act,
    )


def _gpt2_shape(checkpoint: Checkpoint) -> Shape:
    config = checkpoint.config
    odd = [
        name
        for name, usual in (
            ("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False),
            ("add_cross_attention", False),
        )
        if getattr(config, name, usual) != usual
    ]  # fmt: skip
    if odd:
        raise ConfigError(
            f"checkpoint {checkpoint.source!r} sets {', '.join(odd)}, which no backbone supports",
            key=KEY,
        )
    one_of("activation", config.activation_function, ACTIVATIONS, key=KEY)
    return Shape(
        layers=config.n_layer,
        width=config.n_embd,
        heads=config.n_head,
        groups=config.n_head,
        head_width=config.n_embd // config.n_head,
        inner=config.n_inner or 4 * config.n_embd,
        activation=config.activation_function,
    )


def _vilt_layers(network: Any) -> list[Parts]:
    return [
        {
            "norm_attention": layer.layernorm_before,
            "query": layer.attention.attention.query,
            "key": layer.attention.attention.key,
            "value": layer.attention.attention.value,
            "attention_out": layer.attention.output.dense,
            "norm_ffn": layer.layernorm_after,
            "up": layer.intermediate.dense,
            "down": layer.output.dense,
        }
        for layer in network.encoder.layer
    ]


def _gpt2_layers(network: Any) -> list[Parts]:
    layers: list[Parts] = []
    for layer in network.h:
        query, key, value = _split(layer.attn.c_attn, 3)
        layers.append(
            {
                "norm_attention": layer.ln_1,
                "query": query,
                "key": key,
                "value": value,
                "attention_out": _split(layer.attn.c_proj)[0],
                "norm_ffn": layer.ln_2,
                "up": _split(layer.mlp.c_fc)[0],
                "down": _split(layer.mlp.c_proj)[0],
            }
        )
    return layers


def _split(joined: Any, count: int = 1) -> list[nn.Linear]:
    """A map that is kept as ``[in, count * out]``, as ``count`` linear layers."""
    made = []
    for weight, bias in zip(joined.weight.chunk(count, 1), joined.bias.chunk(count), strict=True):
        linear = nn.Linear(weight.shape[0], weight.shape[1], device="meta")
        linear.weight = nn.Parameter(weight.T.contiguous(), requires_grad=False)
        linear.bias = nn.Parameter(bias.clone(), requires_grad=False)
        made.append(linear)
    return made


def _llama_layers(network: Any) -> list[Parts]:
    return [
        {
            "norm_attention": layer.input_layernorm,
            "query": layer.self_attn.q_proj,
            "key": layer.self_attn.k_proj,
            "value": layer.self_attn.v_proj,
            "attention_out": layer.self_attn.o_proj,
            "norm_ffn": layer.post_attention_layernorm,
            "gate": layer.mlp.gate_proj,
            "up": layer.mlp.up_proj,
            "down": layer.mlp.down_proj,
        }
        for layer in network.layers
    ]


def _llama(network: str) -> Architecture:
    return Architecture(
        network, "num_hidden_layers", {"text": ("text",)}, causal=True, gated=True, shape=_shape,
        layers=_llama_layers,
        rest=lambda n: {"norm": n.norm, "rotary": n.rotary_emb},
    )  # fmt: skip


ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "vilt": Architecture(
        "ViltModel", "num_hidden_layers", {"image": ("image", "image-grid"), "text": ("text",)},
        causal=False, gated=False, shape=_shape, layers=_vilt_layers,
        rest=lambda n: {"norm": n.layernorm, "pooler": n.pooler},
    ),
    "gpt2": Architecture(
        "GPT2Model", "n_layer", {"text": ("text",)}, causal=True, gated=False, shape=_gpt2_shape,
        layers=_gpt2_layers, rest=lambda n: {"norm": n.ln_f, "positions": n.wpe},
    ),
    "llama": _llama("LlamaModel"),
    "mistral": _llama("MistralModel"),
    "qwen2": _llama("Qwen2Model"),
}  # fmt: skip
"""``model_type`` of a checkpoint -> its architecture."""


def shape_of(checkpoint: Checkpoint) -> Shape:
    """Sizes of a checkpoint that can be a backbone.

    Raises:
        ConfigError: They cannot be, or are of a variant that is not supported.
    """
    with checkpoint.usable():
        shape = ARCHITECTURES[checkpoint.model_type].shape(checkpoint)
        sizes = shape.layers, shape.width, shape.heads, shape.groups, shape.head_width, shape.inner
        if min(sizes) < 1:
            raise ValueError(f"a size is less than 1: {shape}")
        if shape.heads % shape.groups or (
            not ARCHITECTURES[checkpoint.model_type].gated
            and shape.heads * shape.head_width != shape.width
        ):
            raise ValueError(
                f"{shape.heads} heads of queries do not fit a width of {shape.width} and "
                f"{shape.groups} heads of keys"
            )
    return shape


def halved(module: nn.Module) -> nn.Module:
    """``module`` with the weights of its linear layers in bfloat16, in place."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            for name, parameter in part.named_parameters():
                half = nn.Parameter(parameter.detach().to(torch.bfloat16), requires_grad=False)
                setattr(part, name, half)
    return module
