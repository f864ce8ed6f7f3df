"""LoRA of encoders from checkpoints, exported for the networks that `from_pretrained` gives."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.resident import encoder_of
from hffm_flower import load
from hffm_flower.models.encoders import CheckpointEncoder
from hffm_flower.session.export import export
from tests.support.checkpoints import make_clip, make_siglip, make_wav2vec2_stable, make_whisper
from tests.support.exported import CPU, finished, fresh, ranks_in, settings, shaken
from tests.support.raw_items import items

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"  # peft asks transformers for it
)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def as_told(out: Path) -> dict[str, Any]:
    """Modality -> the model that the README's lines load."""
    parts = (out / "README.md").read_text(encoding="utf-8").split("\n## ")[1:]
    found = {}
    for part in parts:
        names: dict[str, Any] = {}
        (code,) = CODE.findall(part)
        with contextlib.chdir(out):
            exec(code, names)
        found[part.partition("/")[0]] = names["model"]
    return found


def heard(network: Any, inputs: Any) -> torch.Tensor:
    """States of Whisper's encoder for the positions that are filled."""
    body = network.encoder
    x = torch.nn.functional.gelu(body.conv1(inputs["input_features"]))
    x = torch.nn.functional.gelu(body.conv2(x)).mT + body.embed_positions.weight[:75]
    for block in body.layers:
        x = block(x, None)
    normed: torch.Tensor = body.layer_norm(x)
    return normed


@pytest.mark.parametrize(
    ("make_image", "make_audio"), [(make_clip, make_whisper), (make_siglip, make_wav2vec2_stable)]
)
def test_exported_adapters_give_what_the_run_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_image: Any, make_audio: Any
) -> None:
    monkeypatch.setenv("HFFM_CACHE", str(tmp_path / "cache"))
    folders = make_image(tmp_path / "image"), make_audio(tmp_path / "audio")
    config = settings(
        data__tasks="emojivqa10 digits10", model__adapter="none",
        model__tune="image=lora:3:2 audio=lora:2:3",
        model__encoders=f"image=hf:{folders[0]} audio=hf:{folders[1]} text=minilm",
    )  # fmt: skip
    files = finished(config, tmp_path / "run", shaken(fresh(config).state()))
    out = tmp_path / "out"
    assert set(export(files.root, out)) == {out / "image", out / "audio"}
    assert str(folders[0]) in (out / "README.md").read_text(encoding="utf-8")
    trained, told = load(files.root).model, as_told(out)
    assert {len(ranks_in(out / m)) for m in ("image", "audio")} <= {12, 14, 18}
    for modality, stream in (("image", "image"), ("audio", "audio")):
        encoder = encoder_of(config, modality, CPU)
        assert isinstance(encoder, CheckpointEncoder)
        inputs = encoder.prepare(items(modality, 8))
        with torch.inference_mode():
            mine = trained._encoded(stream, modality, encoder.encode(items(modality, 8))[stream])
            network = told[modality].get_base_model()
            if make_audio is make_whisper and modality == "audio":
                states = heard(network, inputs)
            else:
                states = network(**inputs)
                states = states.get("pooler_output", states.last_hidden_state)
        if modality == "audio":
            states = torch.nn.functional.adaptive_avg_pool1d(states.mT, 9).mT
            assert torch.allclose(mine.values, states, atol=1e-4)
        else:
            assert torch.allclose(mine.values[:, 0], states, atol=1e-4)
