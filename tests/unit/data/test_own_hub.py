"""A device's own tables of the library ``datasets``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hffm_flower.config import RunConfig
from hffm_flower.data.own_task import OwnTask
from hffm_flower.errors import ConfigError
from tests.support.folders import opened, write_device
from tests.support.official_data import RARE, make_hf_dataset
from tests.support.tiny import ANSWERS


def own(tmp_path: Path, *, task: str = "tiny-vqa", **table: object) -> OwnTask:
    settings = {"kind": "hf-datasets", "path": "saved", **table}
    return opened(write_device(tmp_path / "device.toml", {task: settings})).tasks[task]


def test_rows_are_read(tiny: RunConfig, tmp_path: Path) -> None:
    make_hf_dataset(tmp_path / "saved", answers=ANSWERS)
    data = own(tmp_path)
    assert tuple(data.inputs) == ("image", "text")
    assert np.bincount(data.answers.astype(np.int64)).tolist() == [7, 6, 5, 4]
    assert data.skipped.lines() == [f"1 unknown answer: row 22 ('{RARE}')"]
    assert (len(data.rows("train")), len(data.rows("test"))) == (18, 4)
    for split in ("train", "test"):
        at = data.rows(split)
        pictures, texts = (data.items(m, split, at) for m in ("image", "text"))
        for picture, text, label in zip(pictures, texts, data.targets(split, at), strict=True):
            assert text.load() == f"what is {int(label)}?"
            image = picture.load()
            assert isinstance(image, Image.Image)
            assert np.asarray(image)[:, int(label), 0].min() == 230
    assert len(own(tmp_path, split="validation").answers) == 6 + 5 + 4 + 3


def test_lists_of_answers_and_damaged_pictures(tiny: RunConfig, tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    good = {"bytes": None, "path": str(tmp_path / "a.png")}
    rows = {
        "image": [good, good, {"bytes": b"no", "path": None}, None],
        "answer": [["North", "the north.", "east"], ["west"], ["east"], ["east"]],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "answer": datasets.List(datasets.Value("string"))}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    data = own(tmp_path, test_share=0)
    assert (tuple(data.inputs), data.answers.tolist()) == (("image",), [0, 3])
    assert data.skipped.lines() == ["1 no picture: row 3", "1 unreadable file: row 2"]


def test_what_is_wrong_is_named(tiny: RunConfig, tmp_path: Path) -> None:
    make_hf_dataset(tmp_path / "saved", answers=ANSWERS)
    (tmp_path / "bare").mkdir()
    for table, part in (
        ({"path": "bare"}, "data.tiny-vqa.path (from "),
        ({"split": "test"}, "'test' is no split of"),
        ({"answer": "label"}, "has no column 'label'; it has: image, question, answer"),
        ({"image": "answer"}, "column 'answer' of "),
        ({"task": "tiny-box"}, "does not read what task 'tiny-box' asks for (box)"),
    ):
        with pytest.raises(ConfigError) as caught:
            own(tmp_path, **table)
        assert part in str(caught.value)
