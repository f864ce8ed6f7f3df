"""What a backbone's checkpoint makes of inputs before its first layer: patches and words.

Its own tokens need no projector. They are quick to make and large, so they are not kept on disk.

A picture is brought to the square that the checkpoint was made for, whatever its proportions:
then every patch has the position that it was trained with, and none is left out or shuffled.
"""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Final, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hffm_flower.data.dataset import Item
from hffm_flower.errors import ConfigError
from hffm_flower.models.architectures import ARCHITECTURES, shape_of
from hffm_flower.models.checkpoints import Checkpoint
from hffm_flower.models.encoders.encoder import (
    Encoder,
    Stream,
    Tokens,
    Uncut,
    Weights,
    batches,
    fingerprint_of,
    full,
)

CODE: Final = "embeddings-1"  # raise when the outputs change
PROCESSOR: Final = "preprocessor_config.json"
TOKENIZER: Final = ("tokenizer.json", "vocab.txt", "vocab.json")
MOST_WORDS: Final = 40
"""Word pieces of a text, with special ones; ViLT has no positions for more."""


class Embeddings(Uncut, ABC):
    """What is common to both readers.

    Attributes:
        checkpoint: Whose embeddings they are.
        reads: Files of it, beside configuration and weights, that change the outputs.
        blank: An item to try it with.
    """

    assets: ClassVar[tuple[str, ...]] = ()
    cacheable: ClassVar[bool] = False
    checkpoint: ClassVar[Checkpoint]
    modality: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    blank: ClassVar[Item]

    def __init__(self, weights: Weights, seed: int, device: torch.device, cut: int = 0) -> None:
        self.cut_streams(cut)
        self._weights, self._seed, self._device = weights, seed, device

    def fingerprint(self) -> str:
        """Hex SHA-256 of the checkpoint's files, and of the seed of random weights."""
        held, random = self.checkpoint, self._weights == "random"
        names = [n for n in self.reads if (held.folder / n).is_file()]
        source = held.digest("config.json") if random else held.fingerprint
        seed = self._seed if random else ""
        return fingerprint_of(CODE, source, held.digest(*names), self._weights, seed, MOST_WORDS)

    def check(self) -> None:
        """Encode one item, so that nothing of it can fail later.

        Raises:
            ConfigError: A file is missing, cannot be read, or does not fit the others.
        """
        try:
            self.encode([self.blank])
        except (OSError, RuntimeError, ValueError, TypeError, LookupError) as error:
            raise ConfigError(
                f"checkpoint {self.checkpoint.source!r} in {self.checkpoint.folder} cannot read "
                f"{self.modality}: {error}",
                key="model.encoders",
            ) from error

    @abstractmethod
    def encode(self, items: Sequence[Item]) -> dict[str, Tokens]:
        """As in `Encoder`."""

    def _network(self) -> Any:
        """The network without its layers."""
        architecture = ARCHITECTURES[self.checkpoint.model_type]
        made = self.checkpoint.load(
            architecture.network, self._weights, seed=self._seed, **{architecture.depth: 0}
        )
        return made.to(self._device)


class ViltPatches(Embeddings):
    """Pictures -> ViLT's image [CLS] and its patches; ``image-grid`` has the patches alone."""

    modality: ClassVar[str] = "image"
    reads: ClassVar[tuple[str, ...]] = (PROCESSOR,)
    blank: ClassVar[Item] = Item("", lambda: Image.new("RGB", (64, 48)))

    @cached_property
    def _parts(self) -> nn.Module:
        made: nn.Module = self._network().embeddings
        del made.text_embeddings
        return made

    @cached_property
    def _normal(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the colours that the checkpoint expects."""
        path = self.checkpoint.folder / PROCESSOR
        told = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        colours = told.get("image_mean", [0.5] * 3), told.get("image_std", [0.5] * 3)
        mean, deviation = (torch.tensor(each)[:, None, None] for each in colours)
        return mean, deviation

    @torch.no_grad()
    def encode(self, items: Sequence[Item]) -> dict[str, Tokens]:
        """Patch embeddings with position and type."""
        shape = self.streams["image"]
        values = torch.zeros(len(items), shape.tokens, shape.width)
        at, parts = 0, cast(Any, self._parts)
        for batch, real in batches(items):
            pixels = torch.stack([self._pixels(item) for item in batch]).to(self._device)
            x = parts.patch_embeddings(pixels).flatten(2).transpose(1, 2)
            x = torch.cat([parts.cls_token.expand(len(x), -1, -1), x], 1)
            x = x + parts.position_embeddings + parts.token_type_embeddings.weight[1]
            values[at : at + real] = x[:real].cpu()
            at += real
        return {"image": full(values), "image-grid": full(values[:, 1:])}

    def _pixels(self, item: Item) -> Tensor:
        picture = item.load()
        if not isinstance(picture, Image.Image):
            raise TypeError(f"the image encoder reads pictures, not {type(picture).__name__}")
        side = self.checkpoint.config.image_size
        square = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        mean, deviation = self._normal
        levels = torch.from_numpy(np.asarray(square, dtype=np.float32)).permute(2, 0, 1) / 255
        return (levels - mean) / deviation


class WordPieces(Embeddings):
    """Texts -> embeddings of their word pieces; what pools comes first."""

    modality: ClassVar[str] = "text"
    reads: ClassVar[tuple[str, ...]] = TOKENIZER
    blank: ClassVar[Item] = Item("", lambda: "a")

    @cached_property
    def _tokenizer(self) -> Any:
        self.checkpoint.file(*TOKENIZER)
        transformers = importlib.import_module("transformers")
        try:
            return transformers.AutoTokenizer.from_pretrained(
                self.checkpoint.folder, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the tokenizer of checkpoint {self.checkpoint.source!r} in "
                f"{self.checkpoint.folder} cannot be used: {error}",
                key="model.encoders",
            ) from error

    @torch.no_grad()
    def encode(self, items: Sequence[Item]) -> dict[str, Tokens]:
        """Embeddings; zeros behind the last word piece."""
        shape = self.streams["text"]
        values = torch.zeros(len(items), shape.tokens, shape.width)
        mask = torch.zeros(len(items), shape.tokens, dtype=torch.bool)
        for row, item in enumerate(items):
            ids = self._ids(_text(item), shape.tokens)
            embedded = self._embedded(torch.tensor([ids], device=self._device))
            values[row, : len(ids)], mask[row, : len(ids)] = embedded[0].cpu(), True
        return {"text": Tokens(values, mask)}

    @abstractmethod
    def _ids(self, text: str, most: int) -> list[int]:
        """At most so many token ids, the one that pools first."""

    @abstractmethod
    def _embedded(self, ids_BT: Tensor) -> Tensor:
        """Embeddings ``[B, T, D]``."""


class ViltWords(WordPieces):
    """Texts -> ViLT's [CLS], word pieces and [SEP], with position and type."""

    @cached_property
    def _parts(self) -> nn.Module:
        made: nn.Module = self._network().embeddings
        del made.patch_embeddings
        return made

    def _ids(self, text: str, most: int) -> list[int]:
        return list(self._tokenizer(text, truncation=True, max_length=most)["input_ids"])

    def _embedded(self, ids_BT: Tensor) -> Tensor:
        parts = cast(Any, self._parts)
        out: Tensor = parts.text_embeddings(input_ids=ids_BT)
        kind: Tensor = parts.token_type_embeddings.weight[0]
        return out + kind


class CausalWords(WordPieces):
    """Texts -> a causal model's end-of-text token, then its word pieces, without position.

    The first is the one that pools, and the backbone moves it behind all others.
    """

    @cached_property
    def _parts(self) -> nn.Module:
        made: nn.Module = self._network().get_input_embeddings()
        return made

    def _ids(self, text: str, most: int) -> list[int]:
        words = self._tokenizer(
            text, add_special_tokens=False, truncation=True, max_length=most - 1
        )
        end = self._tokenizer.eos_token_id
        if end is None:
            raise ConfigError(
                f"the tokenizer of checkpoint {self.checkpoint.source!r} has no end-of-text token",
                key="model.encoders",
            )
        return [end, *words["input_ids"]]

    def _embedded(self, ids_BT: Tensor) -> Tensor:
        out: Tensor = self._parts(ids_BT)
        return out


def _text(item: Item) -> str:
    text = item.load()
    if not isinstance(text, str):
        raise TypeError(f"the text encoder reads texts, not {type(text).__name__}")
    return text


EMBEDDINGS: Final[Mapping[str, Mapping[str, type[Embeddings]]]] = {
    "image": {"vilt": ViltPatches},
    "text": {
        "vilt": ViltWords,
        **{kind: CausalWords for kind, found in ARCHITECTURES.items() if found.causal},
    },
}
"""Modality -> architecture of a backbone -> what reads its embeddings."""


def embeddings_of(modality: str, checkpoint: Checkpoint) -> type[Encoder]:
    """The reader of a checkpoint that can be a backbone, as a class of its own.

    Raises:
        ConfigError: A variant of the architecture that is not supported.
    """
    kind = EMBEDDINGS[modality][checkpoint.model_type]
    width = shape_of(checkpoint).width
    if modality == "text":
        config = checkpoint.config
        streams = {"text": Stream(min(MOST_WORDS, config.max_position_embeddings), width)}
    else:
        with checkpoint.usable():
            patches = (checkpoint.config.image_size // checkpoint.config.patch_size) ** 2
        streams = {"image": Stream(1 + patches, width), "image-grid": Stream(patches, width)}
    made = type(kind.__name__, (kind,), {"checkpoint": checkpoint, "streams": streams})
    return cast("type[Encoder]", made)
