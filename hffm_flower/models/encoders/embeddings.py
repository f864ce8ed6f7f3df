"""What a backbone's checkpoint makes of inputs before its first layer: patches and words.

Its own tokens need no projector. They are quick to make and large, so they are not kept on disk.

A picture is brought to the square that the checkpoint was made for, whatever its proportions:
then every patch has the position that it was trained with, and none is left out or shuffled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any, ClassVar, Final, cast

import torch
from PIL import Image
from torch import Tensor, nn

from hffm_flower.data.dataset import Item
from hffm_flower.errors import ConfigError
from hffm_flower.models.architectures import ARCHITECTURES, shape_of
from hffm_flower.models.checkpoints import Checkpoint
from hffm_flower.models.encoders.checkpoint_image import ImageCheckpoint, picture_of, pixels_of
from hffm_flower.models.encoders.checkpoint_text import TextCheckpoint, text_of, tokenizer_of
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
from hffm_flower.models.hub import CONFIG

CODE: Final = "embeddings-1"  # raise when the outputs change
MOST_WORDS: Final = 40
"""Word pieces of a text, with special ones; ViLT has no positions for more."""


class Embeddings(Uncut, ABC):
    """What is common to both readers.

    Attributes:
        checkpoint: Whose embeddings they are.
        files, extras: As in `CheckpointEncoder`.
        blank: An item to try it with.
    """

    assets: ClassVar[tuple[str, ...]] = ()
    cacheable: ClassVar[bool] = False
    checkpoint: ClassVar[Checkpoint]
    modality: ClassVar[str]
    files: ClassVar[tuple[tuple[str, ...], ...]]
    extras: ClassVar[tuple[str, ...]]
    blank: ClassVar[Item]

    def __init__(self, weights: Weights, seed: int, device: torch.device, cut: int = 0) -> None:
        self.cut_streams(cut)
        self._weights, self._seed, self._device = weights, seed, device

    def fingerprint(self) -> str:
        """Hex SHA-256 of the checkpoint's files, and of the seed of random weights.

        Raises:
            ConfigError: A file is missing; the message says which and how to get it.
        """
        held, random = self.checkpoint, self._weights == "random"
        source = held.digest(CONFIG) if random else held.fingerprint
        return fingerprint_of(
            CODE, version("transformers"), source, held.digest_of(self.files, self.extras),
            self._weights, self._seed if random else "", MOST_WORDS,
        )  # fmt: skip

    def check(self) -> None:
        """Encode one item, so that nothing of it can fail later.

        Raises:
            ConfigError: A file is missing, cannot be read, or does not fit the others.
        """
        self.fingerprint()
        try:
            made = self.encode([self.blank])
            if not all(tokens.values.isfinite().all() for tokens in made.values()):
                raise ValueError("its tokens are not finite")
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
    files: ClassVar[tuple[tuple[str, ...], ...]] = ImageCheckpoint.files
    extras: ClassVar[tuple[str, ...]] = ImageCheckpoint.extras
    blank: ClassVar[Item] = Item("", lambda: Image.new("RGB", (64, 48)))

    @cached_property
    def _parts(self) -> nn.Module:
        made: nn.Module = self._network().embeddings
        del made.text_embeddings
        return made

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
        side = self.checkpoint.config.image_size
        square = picture_of(item).resize((side, side), Image.Resampling.BICUBIC)
        pixels = pixels_of(self.checkpoint, square, do_resize=False, do_pad=False)
        return torch.from_numpy(pixels)


class WordPieces(Embeddings):
    """Texts -> embeddings of their word pieces; what pools comes first."""

    modality: ClassVar[str] = "text"
    files: ClassVar[tuple[tuple[str, ...], ...]] = TextCheckpoint.files
    extras: ClassVar[tuple[str, ...]] = TextCheckpoint.extras
    blank: ClassVar[Item] = Item("", lambda: "a")

    @property
    def _tokenizer(self) -> Any:
        return tokenizer_of(self.checkpoint, padded=False)

    @torch.no_grad()
    def encode(self, items: Sequence[Item]) -> dict[str, Tokens]:
        """Embeddings; zeros behind the last word piece."""
        shape = self.streams["text"]
        values = torch.zeros(len(items), shape.tokens, shape.width)
        mask = torch.zeros(len(items), shape.tokens, dtype=torch.bool)
        for row, item in enumerate(items):
            ids = self._ids(text_of(item), shape.tokens)
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
