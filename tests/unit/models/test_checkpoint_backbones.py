"""Checkpoints as backbones: what `transformers` computes, on the same tokens."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from hffm_flower.data.dataset import Item, text_item
from hffm_flower.errors import ConfigError
from hffm_flower.models.adapters import Untuned
from hffm_flower.models.backbones import backbone_of
from hffm_flower.models.encoders import encoder_type
from hffm_flower.models.encoders.encoder import Tokens, Weights
from hffm_flower.seeding import generator
from tests.support.checkpoints import SIDE, change_config
from tests.support.fused_checkpoints import FUSED

CPU = torch.device("cpu")
CAUSAL = sorted(set(FUSED) - {"vilt"})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    root, known = tmp_path_factory.mktemp("checkpoints"), dict[str, Path]()

    def make(kind: str) -> str:
        if kind not in known:
            known[kind] = FUSED[kind](root / kind)
        return f"hf:{known[kind]}"

    return make


def picture(seed: int) -> Item:
    levels = generator(seed, "picture").integers(0, 256, (SIDE, SIDE, 3), dtype="uint8")
    return Item(str(seed), lambda: Image.fromarray(levels))


def joined(*tokens: Tokens) -> tuple[Tensor, Tensor]:
    return torch.cat([t.values for t in tokens], 1), torch.cat([t.mask for t in tokens], 1)


def read(name: str, modality: str, items: list[Item]) -> dict[str, Tokens]:
    return encoder_type(modality, name)("pretrained", 0, CPU).encode(items)


TEXTS = [text_item(t) for t in ("what is the color of this shape?", "red?")]


def test_vilt_is_that_of_transformers(made: Callable[[str], str]) -> None:
    """Pixels and words in, `pooler_output` out; its shuffling of patches changes no sum."""
    name = made("vilt")
    folder = name.removeprefix("hf:")
    family = backbone_of(name)
    pictures = [picture(1), picture(2)]
    text, image = read(name, "text", TEXTS), read(name, "image", pictures)
    x, mask = joined(text["text"], image["image"])
    frozen = family.load_frozen("pretrained", 0)
    pooled, fused = family.fuse(frozen, [Untuned()] * len(family.layers), x, mask)
    whole: Any = transformers.ViltModel.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)(
        [str(t.load()) for t in TEXTS], padding="max_length", max_length=40, return_tensors="pt"
    )
    pixels = [torch.from_numpy(_levels(p)) / 127.5 - 1 for p in pictures]
    with torch.inference_mode():
        told = whole(**words, pixel_values=torch.stack(pixels), output_hidden_states=True)
    assert x.shape[1] == 40 + 1 + (SIDE // 4) ** 2
    assert torch.allclose(pooled, told.pooler_output, atol=1e-5)
    before_last = told.hidden_states[-2][:, :40]
    assert torch.allclose(fused[:, :40][mask[:, :40]], before_last[mask[:, :40]], atol=1e-5)
    assert torch.equal(image["image-grid"].values, image["image"].values[:, 1:])


def _levels(item: Item) -> Any:
    import numpy as np

    return np.asarray(item.load(), dtype=np.float32).transpose(2, 0, 1)


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_causal_model_is_that_of_transformers(kind: str, made: Callable[[str], str]) -> None:
    """The pooling token is the last; padding in between is not there."""
    name = made(kind)
    family = backbone_of(name)
    tokens = read(name, "text", TEXTS)["text"]
    frozen = family.load_frozen("pretrained", 0)
    pooled, fused = family.fuse(
        frozen, [Untuned()] * len(family.layers), tokens.values, tokens.mask
    )
    assert fused.shape == tokens.values.shape
    folder = name.removeprefix("hf:")
    whole: Any = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for row, text in enumerate(TEXTS):
        ids = [*tokenizer(text.load(), add_special_tokens=False)["input_ids"], 0]
        assert len(ids) == int(tokens.mask[row].sum())
        with torch.inference_mode():
            told = whole(torch.tensor([ids]), output_hidden_states=True)
        assert torch.allclose(pooled[row], told.last_hidden_state[0, -1], atol=1e-5)
        inner = told.hidden_states[-2][0]
        assert torch.allclose(fused[row, 0], inner[-1], atol=1e-5)
        assert torch.allclose(fused[row, 1 : len(ids)], inner[:-1], atol=1e-5)


@pytest.mark.parametrize("kind", sorted(FUSED))
def test_a_prefix_and_the_rest_are_the_whole(kind: str, made: Callable[[str], str]) -> None:
    family = backbone_of(made(kind))
    frozen = family.load_frozen("random", 3)
    torch.manual_seed(1)
    x, mask = torch.randn(2, 9, family.width), torch.ones(2, 9, dtype=torch.bool)
    mask[1, 5:7] = False
    whole = family.fuse(frozen, [Untuned()] * len(family.layers), x, mask)
    for count in range(len(family.layers)):
        states = family.prefix(frozen, x, mask, count)
        rest = family.fuse(frozen, [Untuned()] * (len(family.layers) - count), states, mask)
        assert torch.equal(rest[0], whole[0])
        assert torch.equal(rest[1], whole[1])


@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize("kind", sorted(FUSED))
def test_embeddings_and_layers_come_with_any_weights(
    kind: str, weights: Weights, made: Callable[[str], str]
) -> None:
    name = made(kind)
    words = encoder_type("text", name)(weights, 0, CPU).encode(TEXTS)["text"]
    family = backbone_of(name)
    pooled, _ = family.fuse(
        family.load_frozen(weights, 0), [Untuned()] * len(family.layers), words.values, words.mask
    )
    assert pooled.shape == (len(TEXTS), family.width)
    assert torch.isfinite(pooled).all()


@pytest.mark.parametrize("value", [0, -1, 5])
@pytest.mark.parametrize("what", ["heads", "layers"])
@pytest.mark.parametrize("kind", sorted(FUSED))
def test_sizes_that_cannot_be_are_refused(
    kind: str, what: str, value: int, made: Callable[[str], str], tmp_path: Path
) -> None:
    """Five heads do not divide the width; five layers are more than have weights."""
    folder = Path(shutil.copytree(made(kind).removeprefix("hf:"), tmp_path / kind))
    named = {"heads": ("n_head", "num_attention_heads"), "layers": ("n_layer", "num_hidden_layers")}
    change_config(folder, **{named[what][kind != "gpt2"]: value})
    with pytest.raises(ConfigError, match=str(folder)):
        backbone_of(f"hf:{folder}").load_frozen("pretrained", 0)
    if value < 1:
        with pytest.raises(ConfigError, match=str(folder)):
            encoder_type("text", f"hf:{folder}")
