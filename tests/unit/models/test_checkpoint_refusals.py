"""Checkpoints that encoders refuse before a run, what a check leaves, and that it asks nobody."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hffm_flower.errors import ConfigError
from hffm_flower.models.encoders import (
    CheckpointEncoder,
    encoder_type,
)
from tests.support.checkpoints import (
    SIDE,
    make_bert,
    make_vit,
    make_wav2vec2,
    make_whisper,
    square,
    word_pieces,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("modality", "make", "file"),
    [
        ("image", make_vit, "preprocessor_config.json"),
        ("image", make_vit, "model.safetensors"),
        ("text", make_bert, "tokenizer.json"),
        ("audio", make_whisper, "preprocessor_config.json"),
    ],
)
def test_a_missing_file_is_named_and_the_right_one_changes_the_fingerprint(
    tmp_path: Path, modality: str, make: Callable[..., Path], file: str
) -> None:
    prints = set()
    for seed in (0, 1):
        folder = make(tmp_path / str(seed), seed)
        if seed == 0:
            other = folder
        elif file != "model.safetensors":
            shutil.copy(other / "model.safetensors", folder / "model.safetensors")
            text = json.loads((folder / file).read_text("utf-8"))
            (folder / file).write_text(json.dumps({**text, "told": 1}), encoding="utf-8")
        prints.add(encoder_type(modality, f"hf:{folder}")("pretrained", 0, CPU).fingerprint())
    assert len(prints) == 2
    (folder / file).unlink()
    made = encoder_type(modality, f"hf:{folder}")("pretrained", 0, CPU)
    assert isinstance(made, CheckpointEncoder)
    for told in (made.fingerprint, made.check):
        with pytest.raises(ConfigError, match=f"has no .*{file}.* or .*; expected: {folder}/"):
            told()


def refused(modality: str, folder: Path) -> str:
    made = encoder_type(modality, f"hf:{folder}")("pretrained", 0, CPU)
    assert isinstance(made, CheckpointEncoder)
    with pytest.raises(ConfigError) as caught:
        made.check()
    assert caught.value.key == "model.encoders"
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_the_network_is_refused_at_once(tmp_path: Path) -> None:
    vit, bert, sound = (
        make(tmp_path / make.__name__) for make in (make_vit, make_bert, make_wav2vec2)
    )
    tokenizer = word_pieces()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(bert)
    assert "23 tokens for an embedding of 22" in refused("text", bert)
    processor = square("ViTImageProcessorPil")
    processor.size = {"shortest_edge": SIDE}
    processor.save_pretrained(vit)
    assert "keeps a picture's shape ([3, 32, 42] and [3, 42, 32]" in refused("image", vit)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(sound)
    assert "reads 8000 samples a second; allowed: 16000" in refused("audio", sound)


def test_what_would_fail_later_is_refused_at_once(tmp_path: Path) -> None:
    vit, bert = make_vit(tmp_path / "vit"), make_bert(tmp_path / "bert")
    weights = load_file(vit / "model.safetensors")
    save_file({n: torch.full_like(w, torch.nan) for n, w in weights.items()},
              vit / "model.safetensors", {"format": "pt"})  # fmt: skip
    assert "its tokens are not finite" in refused("image", vit)
    told = json.loads((bert / "tokenizer.json").read_text("utf-8"))
    told["model"]["vocab"]["what"] = 1000
    (bert / "tokenizer.json").write_text(json.dumps(told), "utf-8")
    assert "1001 tokens for an embedding of 22" in refused("text", bert)


@pytest.mark.parametrize(
    ("modality", "make"), [("image", make_vit), ("text", make_bert), ("audio", make_whisper)]
)
def test_a_folder_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modality: str, make: Callable[..., Path]
) -> None:
    folder = make(tmp_path / "made")

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    made = encoder_type(modality, f"hf:{folder}")("pretrained", 0, CPU)
    assert isinstance(made, CheckpointEncoder)
    made.check()


def test_mel_bands_of_another_network_are_refused(tmp_path: Path) -> None:
    folder = make_whisper(tmp_path / "whisper")
    transformers.WhisperFeatureExtractor(64).save_pretrained(folder)
    assert "cannot encode audio: " in refused("audio", folder)


def test_what_was_tried_is_let_go_and_loading_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make_vit(tmp_path / "vit")
    capfd.readouterr()
    made = encoder_type("image", f"hf:{folder}")("pretrained", 0, CPU)
    assert isinstance(made, CheckpointEncoder)
    made.check()
    assert capfd.readouterr() == ("", "")
    assert not {"_parts", "_end"} & vars(made).keys()
