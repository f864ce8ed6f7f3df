"""Small random checkpoints that can be a backbone: causal language models; no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import transformers

from tests.support.checkpoints import BLOCKS, LAYERS, WIDTH, WORDS, _drawn, make_vilt, save


def byte_pairs() -> Any:
    """GPT-2's tokenizer over single letters."""
    letters = ("<|endoftext|>", "\u0120", *"abcdefghijklmnopqrstuvwxyz?")
    return transformers.GPT2Tokenizer(vocab={c: i for i, c in enumerate(letters)}, merges=[])


def make_gpt2(folder: Path, seed: int = 0, **changes: Any) -> Path:
    config = transformers.GPT2Config(
        **{
            "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "n_inner": 48, "vocab_size": 29,
            "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0, **changes,
        }
    )  # fmt: skip
    return save(_drawn(transformers.GPT2Model, config, seed), folder, byte_pairs())


def make_llama(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Llama with four heads of queries on two of keys and values."""
    config = transformers.LlamaConfig(**_gated(), **changes)
    return save(_drawn(transformers.LlamaModel, config, seed), folder, byte_pairs())


def make_qwen2(folder: Path, seed: int = 0, **changes: Any) -> Path:
    config = transformers.Qwen2Config(**_gated(), **changes)
    return save(_drawn(transformers.Qwen2Model, config, seed), folder, byte_pairs())


def make_mistral(folder: Path, seed: int = 0, **changes: Any) -> Path:
    config = transformers.MistralConfig(**_gated(), **changes)
    return save(_drawn(transformers.MistralModel, config, seed), folder, byte_pairs())


def _gated() -> dict[str, Any]:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    return {**BLOCKS, **heads, **ids, "vocab_size": 29, "max_position_embeddings": 64}


FUSED: Final[Mapping[str, Callable[..., Path]]] = {
    "vilt": make_vilt,
    "gpt2": make_gpt2,
    "llama": make_llama,
    "qwen2": make_qwen2,
    "mistral": make_mistral,
}
"""Architecture -> what makes a checkpoint of it."""

__all__ = ["FUSED", "WORDS"]
