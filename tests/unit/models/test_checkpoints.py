"""Checkpoints are found in folders and in the hub's cache, and say what they lack."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import PreTrainedModel

from hffm_flower.errors import ConfigError
from hffm_flower.models import checkpoints
from hffm_flower.models.checkpoints import Checkpoint, find_checkpoint
from tests.support.checkpoints import LAYERS, change_config, make_bert
from tests.support.hub import COMMIT, hub

KEY = "model.encoders"


def find(source: str | Path, *allowed: str) -> Checkpoint:
    return find_checkpoint(str(source), allowed=allowed or ("bert",), key=KEY)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("made") / "bert")


@pytest.fixture
def bert(made: Path, tmp_path: Path) -> Path:
    """A checkpoint that the test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "bert"))


@pytest.fixture
def unplugged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any socket fails the test."""

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_of_a_folder_only_the_configuration_is_read(bert: Path) -> None:
    (bert / "model.safetensors").unlink()
    (bert / "tokenizer.json").unlink()
    found = find(bert)
    assert (found.model_type, found.folder, found.repository) == ("bert", bert, "")
    assert found.config.num_hidden_layers == LAYERS


def test_what_is_no_checkpoint_is_told(bert: Path, tmp_path: Path, unplugged: None) -> None:
    for source in ("bert", "/no/such/folder", "./none", "~/none", "a/b/c"):
        with pytest.raises(ConfigError, match=f"no folder '{source}'.* owner/name"):
            find(source)
    with pytest.raises(ConfigError, match="'/a b/c' has spaces"):
        find("/a b/c")
    with pytest.raises(ConfigError, match=r"'a:b/c' is no model of the hub"):
        find("a:b/c")
    with pytest.raises(ConfigError, match=r"holds no checkpoint: .*config.json is missing"):
        find(tmp_path)
    with pytest.raises(ConfigError, match="is 'bert'; allowed here: dinov2, vit") as caught:
        find(bert, "vit", "dinov2")
    assert caught.value.key == KEY
    change_config(bert, model_type="")
    with pytest.raises(ConfigError, match="'of no model type that it says'; allowed here: bert"):
        find(bert)
    change_config(bert, model_type="bert", hidden_size="wide")
    with pytest.raises(ConfigError, match=r"config.json cannot be used: .*hidden_size"):
        find(bert)
    (bert / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config.json cannot be read"):
        find(bert)


def test_missing_weights_are_named_with_what_gets_them(bert: Path) -> None:
    (bert / "model.safetensors").unlink()
    with pytest.raises(ConfigError) as caught:
        find(bert).load("BertModel", "pretrained", seed=0)
    told = str(caught.value)
    assert "has no model.safetensors or model.safetensors.index.json or pytorch_model.bin" in told
    assert f"expected: {bert / 'model.safetensors'}" in told
    assert f"hf download OWNER/NAME --local-dir {bert}" in told
    find(bert).load("BertModel", "random", seed=0)


def test_weights_of_another_network_are_refused(bert: Path) -> None:
    change_config(bert, num_hidden_layers=LAYERS + 1)
    with pytest.raises(ConfigError, match=r"lack 16 tensors of BertModel, e.g. encoder.layer.3"):
        find(bert).load("BertModel", "pretrained", seed=0)
    change_config(bert, num_hidden_layers=LAYERS, intermediate_size=12)
    told = r"9 tensors have other shapes, e.g. .*dense.bias \[48\], which is to be \[12\]"
    with pytest.raises(ConfigError, match=told):
        find(bert).load("BertModel", "pretrained", seed=0)
    (bert / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(ConfigError, match="cannot be read as BertModel"):
        find(bert).load("BertModel", "pretrained", seed=0)


def test_a_network_is_frozen_quiet_and_leaves_the_global_stream(
    bert: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = torch.random.get_rng_state()
    state = load_file(bert / "model.safetensors")
    network = find(bert).load("BertModel", "pretrained", seed=0)
    drawn = [find(bert).load("BertModel", "random", seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(network.get_parameter(name), state[name])
    of = [d.get_parameter(name) for d in drawn]
    assert torch.equal(of[0], of[1])
    assert not torch.equal(of[0], of[2])
    assert capfd.readouterr() == ("", "")


def test_fingerprint_is_of_contents_and_each_file_is_read_once(
    bert: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find(bert).fingerprint == find(made).fingerprint
    read: list[str] = []
    digest = hashlib.file_digest

    def noted(file: Any, kind: str) -> object:
        read.append(kind)
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", noted)
    first = find(bert).fingerprint
    assert find(bert).fingerprint == first
    assert read == []
    weights = bytearray((bert / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (bert / "model.safetensors").write_bytes(weights)
    os.utime(bert / "model.safetensors", ns=(1, 1))
    second = find(bert).fingerprint
    change_config(bert, hidden_act="relu")
    assert len({first, second, find(bert).fingerprint}) == 3
    assert len(read) == 2


def test_weights_in_parts_and_old_files_are_read(bert: Path) -> None:
    state = load_file(bert / "model.safetensors")
    network = find(bert).load("BertModel", "pretrained", seed=0)
    (bert / "model.safetensors").unlink()
    torch.save(state, bert / "pytorch_model.bin")
    old = find(bert).load("BertModel", "pretrained", seed=0)
    (bert / "pytorch_model.bin").unlink()
    assert isinstance(network, PreTrainedModel)
    network.save_pretrained(bert, max_shard_size="30KB")
    parts = find(bert).weights()
    assert parts[0].name == "model.safetensors.index.json"
    assert len(parts) > 2
    whole = find(bert).load("BertModel", "pretrained", seed=0, add_pooling_layer=False)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, state[name])
        assert torch.equal(old.get_parameter(name), state[name])
    parts[-1].unlink()
    with pytest.raises(ConfigError, match=f"has no {parts[-1].name}; expected: {parts[-1]}"):
        find(bert).fingerprint  # noqa: B018
    parts[0].write_text(json.dumps([]), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"index.json is no index of weights"):
        find(bert).weights()


def test_what_the_hub_has_comes_when_it_is_needed_and_once(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(bert, tmp_path / "cache", monkeypatch) as asked:
        found = find("own/er")
        assert set(asked) == {"config.json", "tokenizer.json", "tokenizer_config.json"}
        assert (found.repository, found.folder.name) == ("own/er", COMMIT)
        asked.clear()
        found.load("BertModel", "pretrained", seed=0)
        assert set(asked) == {"model.safetensors"}
        with pytest.raises(ConfigError, match=r"'own/er' has no vocab.json or merges.txt in"):
            found.file("vocab.json", "merges.txt")
        asked.clear()
        again = find(f"own/er@{COMMIT}")
        again.load("BertModel", "pretrained", seed=0)
        assert find("own/er").fingerprint == again.fingerprint == find(bert).fingerprint
        assert asked == []


def test_hashes_of_the_cache_are_not_computed_again(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(bert, tmp_path / "cache", monkeypatch):
        find("own/er").weights()
    wanted = find(bert).fingerprint
    monkeypatch.setattr(checkpoints, "_hash", None)
    assert find("own/er").fingerprint == wanted


def test_offline_the_cache_serves_and_what_it_lacks_is_named(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unplugged: None
) -> None:
    snapshot = tmp_path / "cache" / "models--own--er" / "snapshots" / COMMIT
    shutil.copytree(bert, snapshot)
    (snapshot / "tokenizer.json").unlink()
    refs = tmp_path / "cache" / "models--own--er" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    found = find("own/er")
    found.load("BertModel", "pretrained", seed=0)
    with pytest.raises(ConfigError) as caught:
        found.file("tokenizer.json", "vocab.txt")
    told = str(caught.value)
    assert "'own/er' lacks tokenizer.json or vocab.txt: not in the hub's cache" in told
    assert str(tmp_path / "cache") in told
    assert "HF_HUB_OFFLINE is set" in told
    assert "hf download own/er," in told


def test_the_variable_keeps_every_process_offline(tmp_path: Path) -> None:
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise SystemExit('a socket was opened')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from hffm_flower.models.checkpoints import find_checkpoint\n"
        "from hffm_flower.errors import ConfigError\n"
        "try: find_checkpoint('own/er@v1', allowed=['bert'], key='model.encoders')\n"
        "except ConfigError as error: print(error)\n"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    assert done.stdout.startswith("checkpoint 'own/er@v1' lacks config.json: not in the hub's")
    assert "HF_HUB_OFFLINE is set" in done.stdout
    assert "hf download own/er --revision v1," in done.stdout
