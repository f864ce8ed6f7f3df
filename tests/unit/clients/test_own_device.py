"""A device with data of its own, behind the real ClientApp."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from clients import shares
from clients.resident import Device, open_own, own_data
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from hffm_flower.models.encoders import ENCODERS
from hffm_flower.models.parts import module_keys
from hffm_flower.modules import ModuleKey
from tests.support.folders import (
    TinyPixels,
    camera_folder,
    picture,
    sensor_folder,
    write_csv,
    write_device,
)

CPU = torch.device("cpu")


@pytest.fixture
def folders(tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device's file with a camera folder and a watch folder; the packaged data are gone."""
    monkeypatch.setitem(cast("dict[str, object]", ENCODERS), "tiny-image", TinyPixels)

    def drawn(**settings: object) -> None:
        raise AssertionError("a device with its own data needs no partition")

    monkeypatch.setattr(shares, "partition", drawn)
    camera_folder(tmp_path / "shots")
    sensor_folder(tmp_path / "watch")
    return write_device(
        tmp_path / "device.toml",
        {
            "tiny-move": {"kind": "series-csv", "path": "watch", "window": 5},
            "tiny-vqa": {"kind": "image-csv", "path": "shots"},
        },
    )


def test_it_trains_and_tests_on_its_folders(tiny: RunConfig, folders: Path) -> None:
    device = Device(tiny, 0, CPU, own_data(tiny, str(folders), 1))
    assert device.profile.modalities == ("image", "sensor", "text")
    assert device.profile.tasks == {"tiny-vqa": 16, "tiny-move": 14}
    train = device.train_data()
    assert {p.task: (len(p), set(p.modalities)) for p in train} == {
        "tiny-vqa": (16, {"image", "text"}), "tiny-move": (14, {"sensor"}),
    }  # fmt: skip
    assert device.model().keys == module_keys(
        ("tiny-vqa", "tiny-move"), ("image", "sensor", "text"), device.spec
    )
    tests = [device.test_data(split) for split in ("iid", "skewed")]
    assert {p.task: len(p) for p in tests[0]} == dict(device.profile.tests)
    for one, other in zip(*tests, strict=True):
        assert torch.equal(one.targets, other.targets)
        assert all(torch.equal(one.inputs[s].values, other.inputs[s].values) for s in one.inputs)


def test_a_task_without_text_beside_one_with_it(
    tiny: RunConfig, folders: Path, tmp_path: Path
) -> None:
    """The question module is there for one, the pooling token for the other."""
    rows = [(picture(tmp_path / "b" / f"{i}.png", i), 1, 1, 2, 2) for i in range(5)]
    write_csv(tmp_path / "b" / "examples.csv", ("image", "left", "top", "width", "height"), rows)
    (tmp_path / "shots" / "examples.csv").rename(tmp_path / "shots" / "all.csv")
    rows2 = [(f"{i:03}.png", "north") for i in range(8)]
    write_csv(tmp_path / "shots" / "examples.csv", ("image", "answer"), rows2)
    tables = {
        "tiny-vqa": {"kind": "image-csv", "path": "shots"},
        "tiny-box": {"kind": "image-csv", "path": "b"},
    }
    file = write_device(tmp_path / "two.toml", tables)
    silent = Device(tiny, 0, CPU, own_data(tiny, str(file), 1))
    assert silent.profile.modalities == ("image",)
    tables["tiny-vqa"] = {"kind": "image-csv", "path": "shots", "csv": "all.csv"}
    file = write_device(tmp_path / "three.toml", tables)
    talking = Device(tiny, 0, CPU, own_data(tiny, str(file), 1))
    assert talking.profile.modalities == ("image", "text")
    assert ModuleKey.parse("prompt/cls") in talking.model().keys
    for device in (silent, talking):
        model = device.model()
        for part in device.train_data():
            assert torch.isfinite(model(part.task, part.inputs)).all()


def test_folders_are_read_once_in_a_run(
    tiny: RunConfig, folders: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        first = own_data(tiny, str(folders), 1)
        assert own_data(tiny, str(folders), 1) is first
        assert not caplog.records
        assert first.report() == first.skipped()
    assert [r.message.split(": ", 1)[1] for r in caplog.records] == [
        "task 'tiny-vqa': left out 1 missing file: no.png",
        "task 'tiny-vqa': left out 2 unknown answer: 000.png ('zenith'), 001.png ('')",
        "task 'tiny-vqa': left out 1 unreadable file: broken.png",
        "task 'tiny-move': left out 2 unknown answer: r9.csv ('Jump')",
    ]
    (folders.parent / "shots" / "000.png").unlink()
    assert own_data(tiny, str(folders), 2).profile(0).tasks != first.profile(0).tasks


def test_windows_that_the_encoder_does_not_read_are_told(tiny: RunConfig, folders: Path) -> None:
    text = folders.read_text().replace("window = 5", "window = 4")
    folders.write_text(text)
    with pytest.raises(ConfigError) as caught:
        open_own(tiny, folders)
    assert str(caught.value).startswith(f"data.tiny-move.window (from {folders}): windows [4, 3] ")


def test_targets_are_labels_of_the_task(tiny: RunConfig, folders: Path) -> None:
    device = Device(tiny, 0, CPU, open_own(tiny, folders))
    (vqa,) = (p for p in device.train_data() if p.task == "tiny-vqa")
    brightest = vqa.inputs["image"].values.mean(dim=1)[:, :4].argmax(dim=1)
    assert torch.equal(brightest, vqa.targets)
    assert np.bincount(vqa.targets).tolist() == [4, 4, 4, 4]
