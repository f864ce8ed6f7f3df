"""Checkpoints as backbones: what `transformers` computes, on the same tokens."""

from __future__ import annotations

import json
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
from hffm_flower.models.encoders import Embeddings, embeddings, encoder_type
from hffm_flower.models.encoders.encoder import Tokens, Weights
from hffm_flower.seeding import generator
from tests.support.checkpoints import SIDE, change_config, square
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


def picture(seed: int, height: int = SIDE, width: int = SIDE) -> Item:
    levels = generator(seed, "picture").integers(0, 256, (height, width, 3), dtype="uint8")
    return Item(str(seed), lambda: Image.fromarray(levels))


def joined(*tokens: Tokens) -> tuple[Tensor, Tensor]:
    return torch.cat([t.values for t in tokens], 1), torch.cat([t.mask for t in tokens], 1)


def read(name: str, modality: str, items: list[Item]) -> dict[str, Tokens]:
    return encoder_type(modality, name)("pretrained", 0, CPU).encode(items)


TEXTS = [text_item(t) for t in ("what is the color of this shape?", "red?")]


def test_vilt_is_that_of_transformers(made: Callable[[str], str]) -> None:
    """Pixels and words in, `pooler_output` out; its shuffling of patches changes no sum.

    Pictures of any proportions become squares, which ViLT's own processor would not make.
    """
    name = made("vilt")
    folder = name.removeprefix("hf:")
    family = backbone_of(name)
    pictures = [picture(1), picture(2, 20, 90), picture(3, 70, 33)]
    texts = [*TEXTS, TEXTS[0]]
    text, image = read(name, "text", texts), read(name, "image", pictures)
    x, mask = joined(text["text"], image["image"])
    frozen = family.load_frozen("pretrained", 0)
    pooled, fused = family.fuse(frozen, [Untuned()] * len(family.layers), x, mask)
    whole: Any = transformers.ViltModel.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)(
        [str(t.load()) for t in texts], padding="max_length", max_length=40, return_tensors="pt"
    )
    loaded = [p.load() for p in pictures]
    squared = square("ViTImageProcessorPil", resample=Image.Resampling.BICUBIC)
    own = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    assert own(loaded[1], return_tensors="pt")["pixel_values"].shape[2:] != (SIDE, SIDE)
    pixels = squared(loaded, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        told = whole(**words, pixel_values=pixels, output_hidden_states=True)
    assert x.shape[1] == 40 + 1 + (SIDE // 4) ** 2
    assert torch.allclose(pooled, told.pooler_output, atol=1e-5)
    before_last = told.hidden_states[-2][:, :40]
    assert torch.allclose(fused[:, :40][mask[:, :40]], before_last[mask[:, :40]], atol=1e-5)
    assert torch.equal(image["image-grid"].values, image["image"].values[:, 1:])


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


def reader(folder: Path, modality: str) -> Embeddings:
    made = encoder_type(modality, f"hf:{folder}")("pretrained", 0, CPU)
    assert isinstance(made, Embeddings)
    return made


@pytest.fixture
def copied(made: Callable[[str], str], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: shutil.copytree(made(kind).removeprefix("hf:"), tmp_path / kind)


@pytest.mark.parametrize("kind", ["vilt", "gpt2"])
def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(
    kind: str, copied: Callable[[str], Path]
) -> None:
    folder = copied(kind)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zebra"] * (kind == "vilt") or ["zebra", "yak", "xerus"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"\d+ tokens for an embedding of 2") as caught:
        reader(folder, "text").check()
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "modality", "file"),
    [
        *(
            ("vilt", "text", f)
            for f in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
        ),
        ("gpt2", "text", "merges.txt"),
        ("vilt", "image", "processor_config.json"),
    ],
)
def test_all_that_changes_the_tokens_changes_the_fingerprint(
    kind: str, modality: str, file: str, copied: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = copied(kind)
    before = reader(folder, modality).fingerprint()
    (folder / file).write_text('{"do_lower_case": false}', encoding="utf-8")
    after = reader(folder, modality).fingerprint()
    monkeypatch.setattr(embeddings, "version", lambda _: "4.0")
    assert len({before, after, reader(folder, modality).fingerprint()}) == 3


PROCESSOR = "preprocessor_config.json"


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (None, f"has no {PROCESSOR} or processor_config.json"),
        ([], "the preprocessing of checkpoint .* cannot be used"),
        ({"image_std": [0, 0, 0]}, r"makes pixels that are not finite; image_std is .*0"),
    ],
)
def test_preprocessing_of_a_backbone_is_needed_and_tried(
    told: object, says: str, copied: Callable[[str], Path]
) -> None:
    folder = copied("vilt")
    (folder / PROCESSOR).unlink()
    if told is not None:
        (folder / PROCESSOR).write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ConfigError, match=says) as caught:
        reader(folder, "image").check()
    assert str(folder) in str(caught.value)


def test_preprocessing_of_a_whole_processor_is_read(copied: Callable[[str], Path]) -> None:
    folder = copied("vilt")
    usual = shutil.copytree(folder, folder.parent / "usual")
    told = json.loads((folder / PROCESSOR).read_text("utf-8"))
    (folder / PROCESSOR).unlink()
    whole = {"image_processor": {**told, "image_mean": [0.1, 0.2, 0.3]}}
    (folder / "processor_config.json").write_text(json.dumps(whole), encoding="utf-8")
    found, others = (reader(f, "image").encode([picture(1)])["image"] for f in (folder, usual))
    assert not torch.allclose(found.values[:, 1:], others.values[:, 1:], atol=1e-3)
    assert torch.equal(found.values[:, 0], others.values[:, 0])
