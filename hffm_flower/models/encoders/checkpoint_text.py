"""Texts: the BERT family of checkpoints; states behind the last layer, 24 tokens at most.

A text is cut into tokens by the checkpoint's own tokenizer, with the marks that it puts in
front and behind, and truncated.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Final

from torch import Tensor, nn

from hffm_flower.data.dataset import Item
from hffm_flower.errors import ConfigError
from hffm_flower.models.checkpoints import Checkpoint, quiet
from hffm_flower.models.encoders.checkpoint import Anatomy, CheckpointEncoder
from hffm_flower.models.encoders.encoder import Stream, Tokens

TOKENS: Final = 24
EAGER: Final = {"attn_implementation": "eager"}
"""Others leave a mask out where nothing is masked: bits would depend on an item's companions."""
_POOLED: Final = {**EAGER, "add_pooling_layer": False}


class TextCheckpoint(CheckpointEncoder):
    """Texts -> token states ("text"), the mark in front first."""

    modality: ClassVar[str] = "text"
    anatomies: ClassVar[Mapping[str, Anatomy]] = {
        "bert": Anatomy("BertModel", "encoder.layer", changes=_POOLED),
        "roberta": Anatomy("RobertaModel", "encoder.layer", changes=_POOLED),
        "xlm-roberta": Anatomy("XLMRobertaModel", "encoder.layer", changes=_POOLED),
        "distilbert": Anatomy("DistilBertModel", "transformer.layer", changes=EAGER),
        "electra": Anatomy("ElectraModel", "encoder.layer", changes=EAGER),
    }
    files: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model"),
    )
    extras: ClassVar[tuple[str, ...]] = (
        *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
    )
    masked: ClassVar[bool] = True

    @classmethod
    def streams_of(cls, width: int) -> Mapping[str, Stream]:
        """One stream."""
        return {"text": Stream(TOKENS, width)}

    @classmethod
    def front_tokens(cls) -> int:
        """As many as behind the last layer."""
        return TOKENS

    @classmethod
    def prepare(cls, items: Sequence[Item]) -> dict[str, Tensor]:
        """Token ids and mask [N, 24]."""
        made = tokenizer_of(cls.checkpoint, padded=True)
        words = made(
            [text_of(item) for item in items],
            padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt",
        )  # fmt: skip
        return {name: words[name] for name in ("input_ids", "attention_mask")}

    @classmethod
    def pool(cls, stream: str, tokens: Tokens, head: nn.Module | None) -> Tokens:
        """The states as they are."""
        del stream, head
        return tokens

    @classmethod
    def blank(cls) -> Item:
        """A short text."""
        return Item("", lambda: "a")


@lru_cache(maxsize=8)
def tokenizer_of(checkpoint: Checkpoint, *, padded: bool) -> Any:
    """The checkpoint's tokenizer; ``padded``: it has to have a token for padding.

    Raises:
        ConfigError: It is missing, cannot be used, or is not that of the network.
    """
    checkpoint.file(*TextCheckpoint.files[0])
    auto = importlib.import_module("transformers").AutoTokenizer
    try:
        with quiet():
            made = auto.from_pretrained(checkpoint.folder, local_files_only=True)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, ImportError) as error:
        raise ConfigError(
            f"the tokenizer of checkpoint {checkpoint.source!r} in {checkpoint.folder} cannot be "
            f"used: {error}",
            key=checkpoint.key,
        ) from error
    size = max(len(made), *(1 + place for place in made.get_vocab().values()))
    if size > checkpoint.config.vocab_size or (padded and made.pad_token_id is None):
        raise ConfigError(
            f"the tokenizer of checkpoint {checkpoint.source!r} in {checkpoint.folder} is not that "
            f"of its network: {size} tokens for an embedding of "
            f"{checkpoint.config.vocab_size}, padding {made.pad_token!r}",
            key=checkpoint.key,
        )
    return made


def text_of(item: Item) -> str:
    """An item as a text; TypeError if it is none."""
    text = item.load()
    if not isinstance(text, str):
        raise TypeError(f"the text encoder reads texts, not {type(text).__name__}")
    return text
