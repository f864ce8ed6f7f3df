"""LoRA of a finished run as peft loads it: the same numbers as the run's own model gives."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from clients.resident import encoder_of
from hffm_flower import load
from hffm_flower.assets import asset_root
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError, OutputError
from hffm_flower.models.encoders import lite0, minilm, speech
from hffm_flower.models.encoders.encoder import Tokens, as_tokens
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.modules import ModuleKey
from hffm_flower.records import write_state
from hffm_flower.session.export import export
from tests.support.exported import CPU, finished, fresh, ranks_in, settings, shaken
from tests.support.raw_items import items

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"  # peft asks transformers for it
)

CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HFFM_CACHE", str(tmp_path / "cache"))


def as_told(out: Path, modality: str) -> Any:
    """The model that the README's lines load."""
    text = (out / "README.md").read_text(encoding="utf-8")
    section = text.split(f"## {modality}/")[1]
    code = CODE.search(section)
    assert code
    names: dict[str, Any] = {}
    with contextlib.chdir(out):
        exec(code[1], names)
    return names["model"]


def base_bert() -> Any:
    import transformers

    return transformers.BertModel.from_pretrained(asset_root("minilm") / "model")


def bert(model: Any) -> tuple[torch.Tensor, ...]:
    """States of all tokens behind the embeddings and behind each layer."""
    tokenizer = minilm.MiniLm("pretrained", 0, CPU)._tokenizer
    words = tokenizer.encode_batch([str(item.load()) for item in items("text", 6)])
    with torch.inference_mode():
        states: tuple[torch.Tensor, ...] = model(
            input_ids=torch.tensor([w.ids for w in words]),
            attention_mask=torch.tensor([w.attention_mask for w in words]),
            output_hidden_states=True,
        ).hidden_states
    return states


def encoded(config: RunConfig, model: MultimodalModel, modality: str, stream: str) -> Tokens:
    """Tokens behind the whole encoder, its trained blocks included."""
    with torch.inference_mode():
        at_cut = encoder_of(config, modality, CPU).encode(items(modality, 6))[stream]
        return model._encoded(stream, modality, at_cut)


@pytest.mark.parametrize(
    ("changes", "rank", "ranks"),
    [
        pytest.param({"model__tune": "text=lora:5:2"}, 3, {3, 5}, id="exact-below-drawn"),
        pytest.param({"server__lora-rule": "lora-ffa"}, 0, {8}, id="ffa"),
        pytest.param(
            {"server__lora-rule": "lora-ffa", "model__tune": "text=lora:2:3",
             "model__lora-scaling": "rslora"}, 0, {2, 8}, id="ffa-tuned-rslora",
        ),
        pytest.param(
            {"model__lora-scaling": "rslora", "model__tune": "text=lora:4",
             "model__lora-alpha": 5.0, "model__lora-ranks": "4 16"}, 6, {4, 6}, id="exact-rslora",
        ),
        pytest.param(
            {"server__lora-rule": "lora-alternate", "model__tune": "text=lora:4:4",
             "model__tune-targets": "*.query *.dense"}, 0, {4, 8}, id="alternate",
        ),
    ],
)  # fmt: skip
def test_bert_gives_what_the_run_gives(
    changes: dict[str, object], rank: int, ranks: set[int], tmp_path: Path
) -> None:
    config = settings(**changes)
    files = finished(config, tmp_path / "run", shaken(fresh(config).state(), rank))
    out = tmp_path / "out"
    assert export(files.root, out) == [out / "text"]
    model = load(files.root).model
    tokens = encoded(config, model, "text", "text")
    with torch.inference_mode():
        pooled, fused = model.family.fuse(model.frozen, model._layers(), tokens.values, tokens.mask)
    states = bert(as_told(out, "text"))
    assert torch.allclose(states[4][tokens.mask], tokens.values[tokens.mask], atol=1e-5)
    assert torch.allclose(states[5][tokens.mask], fused[tokens.mask], atol=1e-5)
    assert torch.allclose(states[6][:, 0], pooled, atol=1e-5)
    assert not torch.allclose(bert(base_bert())[6][:, 0], pooled, atol=1e-2)
    assert set(ranks_in(out / "text").values()) == ranks


def test_all_encoders_beside_bottlenecks(tmp_path: Path) -> None:
    tune = "text=lora:4:4 image=lora:3:2 audio=lora:2:2"
    config = settings(
        data__tasks="emojivqa10 digits10", model__adapter="bottleneck", model__tune=tune
    )
    files = finished(config, tmp_path / "run", shaken(fresh(config).state()))
    out = tmp_path / "out"
    assert set(export(files.root, out)) == {out / m for m in ("text", "image", "audio")}
    model = load(files.root).model

    tokens = encoded(config, model, "text", "text")
    states = bert(as_told(out, "text"))
    assert torch.allclose(states[4][tokens.mask], tokens.values[tokens.mask], atol=1e-5)

    want = encoded(config, model, "image", "image").values
    pixels = torch.stack([lite0.prepare(item) for item in items("image", 6)])
    layout = torch.channels_last  # ours; in the other one the bare network rounds otherwise
    pixels = pixels.contiguous(memory_format=layout)
    with torch.inference_mode():
        loaded = as_told(out, "image").get_base_model().to(memory_format=layout)
        seen = as_tokens(loaded.extract_features(pixels))
        untouched = as_tokens(lite0.pretrained().extract_features(pixels))
    assert torch.allclose(seen, want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(untouched, want, atol=1e-2)
    assert {"_conv_head", "_blocks.14._expand_conv"} <= ranks_in(out / "image").keys()

    want = encoded(config, model, "audio", "audio").values
    clips = torch.stack([speech.prepare(item) for item in items("audio", 6)])
    with torch.inference_mode():
        mel = speech.Speech("pretrained", 0, CPU)._front(clips)
        heard = as_told(out, "audio")(mel)
        untouched = speech.pretrained()(mel)
    assert torch.allclose(heard, want, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(untouched, want, atol=1e-2)


def test_plain_changes_no_number_and_no_name() -> None:
    pixels = torch.stack([lite0.prepare(item) for item in items("image", 2)])
    network = lite0.pretrained()
    names = list(network.state_dict())
    with torch.inference_mode():
        before = network(pixels)
        assert torch.allclose(lite0.plain(network)(pixels), before, atol=1e-5)
    assert list(network.state_dict()) == names


def test_settings_of_peft_are_those_of_the_run(tmp_path: Path) -> None:
    config = settings(**{"model__lora-alpha": 6.0, "model__tune": "text=lora:2"})
    state = shaken(fresh(config).state())
    idle = ModuleKey.parse("adapter/fusion.5")
    state[idle] = {n: a * 0 if "lora_B" in n else a for n, a in state[idle].items()}
    files = finished(config, tmp_path / "run", state)
    (folder,) = export(files.root, tmp_path / "out")
    told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (told["r"], told["lora_alpha"], told["use_rslora"]) == (8, 6.0, False)
    ranks = ranks_in(folder)
    assert sorted(told["target_modules"]) == sorted(ranks)
    assert told["rank_pattern"] == {n: r for n, r in ranks.items() if r != 8}
    assert ranks["encoder.layer.5.output.dense"] == 8  # adds nothing, and is there all the same
    assert ranks["encoder.layer.3.attention.self.value"] == 2


def test_servers_and_devices_have_their_own(tmp_path: Path) -> None:
    config = settings(tree__devices=4, tree__edges=2, **{"model__lora-ranks": "4"})
    state = shaken(fresh(config).state())
    files = finished(config, tmp_path / "run", state)
    key = ModuleKey.parse("adapter/fusion.4")
    half = {n: a / 2 if "lora_B" in n else a for n, a in state[key].items()}
    write_state(files.edge(1), {**state, key: half})
    got = {}
    for node in ("cloud", "edge/1"):
        (folder,) = export(files.root, tmp_path / node.replace("/", "-"), node)
        got[node] = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.encoder.layer.4.attention.self.query.lora_B.weight"
    assert np.array_equal(got["edge/1"][name], got["cloud"][name] / 2)
    assert np.array_equal(got["cloud"][name], state[key]["query.lora_B.weight"])
    with pytest.raises(OutputError, match="no model of edge/0"):
        export(files.root, tmp_path / "none", "edge/0")
    with pytest.raises(ConfigError, match="edge/N or device/N"):
        export(files.root, tmp_path / "none", "edge")
    assert not (tmp_path / "none").exists()


def test_a_device_exports_its_rank(tmp_path: Path) -> None:
    config = settings(
        tree__devices=2, tree__edges=1, data__train_per_answer=4, data__test_per_answer=2,
        **{"model__lora-ranks": "4"},
    )  # fmt: skip
    state = shaken(fresh(config).state())
    files = finished(config, tmp_path / "run", state)
    saved = files.result()
    files.write_result({**saved, "clusters": [[0, 1]]})
    write_state(files.edge(0), state)
    (folder,) = export(files.root, tmp_path / "out", "device/1")
    assert set(ranks_in(folder).values()) == {4}
    assert "# LoRA of device/1, run run" in (tmp_path / "out/README.md").read_text(encoding="utf-8")
