"""A prepared task as a data set: what a run draws of it, and what it notices of its files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hffm_flower.data import DATASETS, Dataset
from hffm_flower.data.dataset import Split
from hffm_flower.data.own_images import decode
from hffm_flower.data.prepare import Wanted, prepare
from hffm_flower.errors import ConfigError
from hffm_flower.tasks import TASKS
from tests.support.official_data import make_gqa, make_series_csv

SPLITS: tuple[Split, ...] = ("train", "test")


@pytest.fixture
def gqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GQA folder, prepared as gqa4."""
    monkeypatch.setenv("HFFM_DATA", str(tmp_path / "tasks"))
    root = make_gqa(tmp_path / "in")
    prepare("gqa", root, wanted=Wanted(4, {"train": 6, "test": 4}))
    return root


def opened(seed: int = 1, train: int = 4, test: int = 3, task: str = "gqa4") -> Dataset:
    return DATASETS[TASKS[task].dataset](
        task, train_per_answer=train, test_per_answer=test, seed=seed
    )


def digests(data: Dataset, split: Split = "train") -> list[str]:
    return [i.digest for i in data.items("image", split, range(len(data.labels(split))))]


def test_a_run_draws_equally_many_of_each_answer(gqa: Path) -> None:
    data = opened()
    sizes: dict[Split, int] = {"train": 4, "test": 3}
    for split, count in sizes.items():
        assert list(Counter(data.labels(split).tolist()).values()) == [count] * 4
    assert digests(opened(1)) == digests(data)
    assert digests(opened(2)) != digests(data)
    assert sorted(digests(opened(2, train=6))) == sorted(digests(opened(1, train=6)))
    assert data.groups("train") is None
    with pytest.raises(ConfigError, match=r"7 train examples asked of task 'gqa4', but it has 6"):
        opened(train=7)
    with pytest.raises(ConfigError, match=r"lower data.test-per-answer"):
        opened(test=5)


def test_inputs_and_answers_of_an_example_belong_together(gqa: Path) -> None:
    data = opened()
    for split in SPLITS:
        at = np.arange(len(data.labels(split)))[::-1]
        pictures, texts = (data.items(m, split, at) for m in ("image", "text"))
        for picture, text, label in zip(pictures, texts, data.targets(split, at), strict=True):
            assert text.load() == f"What is in the {label}. picture, of 6?"
            image = picture.load()
            assert isinstance(image, Image.Image)
            assert np.asarray(image).mean(axis=(0, 2)).argmax() == label
    with pytest.raises(ConfigError, match="no modality 'sensor'; it has: image, text"):
        data.items("sensor", "train", [0])


def test_windows_are_those_that_were_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HFFM_DATA", str(tmp_path / "tasks"))
    root, wanted = make_series_csv(tmp_path / "in"), Wanted(2, {"train": 6, "test": 4})
    prepare("series-csv", root, settings={"window": 5}, wanted=wanted, name="shake")
    data = opened(task="shake", train=6)
    windows = np.stack([np.asarray(i.load()) for i in data.items("sensor", "train", range(12))])
    assert windows.shape == (12, 5, 3)
    assert windows.dtype == np.float32
    spread = windows.std(axis=(1, 2))
    assert TASKS["shake"].answers == ("shaken", "still")
    assert ((spread > spread.mean()) == (data.labels("train") == 0)).all()


def test_a_picture_with_other_content_is_not_read(gqa: Path) -> None:
    item = opened().items("image", "train", [0])[0]
    path = next(p for p in (gqa / "images").iterdir() if same(p, item.load()))
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    opened()  # as long as it was
    with pytest.raises(ConfigError, match=rf"'gqa4': images/{path.name} is not what was prepared"):
        item.load()


def same(path: Path, picture: object) -> bool:
    return np.array_equal(np.asarray(decode(path)), np.asarray(picture))


def test_files_that_went_or_changed_are_noticed_at_once(gqa: Path, tmp_path: Path) -> None:
    for path in (gqa / "images").glob("train*.jpg"):
        path.unlink()
    for path in (gqa / "images").glob("val*.jpg"):
        path.write_bytes(b"x")
    with pytest.raises(ConfigError) as caught:
        opened()
    for part in (
        "task 'gqa4': of its 28 files below", "12 changed: images/val",
        "16 missing: images/train", ", ...", "change root in", "prepare it again",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_files_may_move_when_the_root_is_changed(gqa: Path, tmp_path: Path) -> None:
    before = digests(opened())
    gqa.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="28 missing"):
        opened()
    path = tmp_path / "tasks" / "gqa4" / "task.toml"
    path.write_text(path.read_text().replace(str(gqa), str(tmp_path / "moved")))
    assert digests(opened()) == before


def test_tables_that_were_changed_are_refused(gqa: Path, tmp_path: Path) -> None:
    path = tmp_path / "tasks" / "gqa4" / "train.csv"
    path.write_text(path.read_text().replace("\nno,", "\nmaybe,", 1))
    with pytest.raises(ConfigError, match=r"the tables in .* are not those that task.toml names"):
        opened()
    path.unlink()
    with pytest.raises(ConfigError, match="has no tables that can be read"):
        opened()
