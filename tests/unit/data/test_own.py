"""A device's own pictures: what is read, what is left out, and what is refused."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hffm_flower.config import RunConfig
from hffm_flower.data import DATASETS, TASKS
from hffm_flower.data.captions import decode
from hffm_flower.data.own import KINDS
from hffm_flower.data.own_task import divide, vocabulary
from hffm_flower.errors import ConfigError
from hffm_flower.seeding import generator
from tests.support.folders import camera_folder, opened, picture, write_csv, write_device

Tables = Mapping[str, Mapping[str, object]]
PAGE = Path(__file__).parents[3] / "docs" / "own-data.md"
BOX = ("image", "left", "top", "width", "height")


def vqa(folder: Path, **more: object) -> Tables:
    return {"tiny-vqa": {"kind": "image-csv", "path": folder, **more}}


@pytest.fixture
def camera(tiny: RunConfig, tmp_path: Path) -> Path:
    """The TOML file of a device with a camera folder beside it."""
    camera_folder(tmp_path / "shots")
    return write_device(tmp_path / "device.toml", vqa(Path("shots")))


def test_pictures_questions_and_answers_are_read(camera: Path) -> None:
    own = opened(camera).tasks["tiny-vqa"]
    assert tuple(own.inputs) == ("image", "text")
    rows = own.rows("train")
    assert (len(rows), len(own.rows("test"))) == (16, 4)
    assert np.bincount(own.labels("train")).tolist() == [4, 4, 4, 4]
    for modality, type_ in (("image", Image.Image), ("text", str)):
        assert all(isinstance(i.load(), type_) for i in own.items(modality, "train", rows))
    # Inputs and targets of a row belong together, whatever its answer's case.
    for split in ("train", "test"):
        at = own.rows(split)[::-1]
        for image, text, label in zip(
            own.items("image", split, at), own.items("text", split, at),
            own.targets(split, at), strict=True,
        ):  # fmt: skip
            assert np.asarray(image.load())[:, int(label), 0].min() == 230
            assert text.load() == ("go", "go far", "go very far", "far")[int(label)]
    with pytest.raises(ConfigError, match=r"no modality 'sensor'; it has: image, text"):
        own.items("sensor", "train", rows)


def test_what_cannot_be_used_is_counted_and_named(camera: Path) -> None:
    own = opened(camera)
    assert own.skipped() == {
        "tiny-vqa": {"missing file": 1, "unknown answer": 2, "unreadable file": 1}
    }
    assert own.tasks["tiny-vqa"].skipped.lines() == [
        "1 missing file: no.png",
        "2 unknown answer: 000.png ('zenith'), 001.png ('')",
        "1 unreadable file: broken.png",
    ]


def test_the_profile_is_what_the_folder_holds(camera: Path) -> None:
    profile = opened(camera).profile(7)
    assert (profile.index, profile.modalities) == (7, ("image", "text"))
    assert (profile.tasks, profile.tests) == ({"tiny-vqa": 16}, {"tiny-vqa": 4})
    assert profile.wanted == ("tiny-vqa",)
    assert opened(camera, served=("image",)).profile(7).modalities == ("image",)


def test_the_seed_alone_says_what_is_for_testing(camera: Path) -> None:
    own = [opened(camera, seed=seed).tasks["tiny-vqa"] for seed in (1, 1, 2)]
    tested = [[i.digest for i in data.items("image", "test", range(4))] for data in own]
    assert tested[0] == tested[1]
    assert tested[0] != tested[2]


def test_without_questions_a_device_has_no_text(tiny: RunConfig, tmp_path: Path) -> None:
    rows = [(picture(tmp_path / f"{i}.png", i), "north") for i in range(6)]
    write_csv(tmp_path / "mine.csv", ("image", "answer"), rows)
    file = write_device(tmp_path / "d.toml", vqa(tmp_path, csv="mine.csv", **{"test-share": 0}))
    own = opened(file)
    assert own.profile(0).modalities == ("image",)
    assert (own.profile(0).tasks, own.profile(0).tests) == ({"tiny-vqa": 6}, {})
    assert own.skipped() == {}


def test_a_question_that_is_empty_is_left_out(tiny: RunConfig, tmp_path: Path) -> None:
    name = picture(tmp_path / "a.png")
    rows = [(name, "go", "north"), (name, "  ", "north")]
    write_csv(tmp_path / "examples.csv", ("image", "text", "answer"), rows)
    assert opened(write_device(tmp_path / "d.toml", vqa(tmp_path))).skipped() == {
        "tiny-vqa": {"no text": 1}
    }


def test_one_picture_is_never_in_both_splits(tiny: RunConfig, tmp_path: Path) -> None:
    rows = [
        (picture(tmp_path / f"{i}.png", i, seed=i), f"question {q}", ("north", "west")[q % 2])
        for i in range(10) for q in range(4)
    ]  # fmt: skip
    write_csv(tmp_path / "examples.csv", ("image", "text", "answer"), rows)
    own = opened(write_device(tmp_path / "d.toml", vqa(tmp_path, **{"test-share": 0.3})))
    data = own.tasks["tiny-vqa"]
    seen = {s: {i.digest for i in data.items("image", s, data.rows(s))} for s in ("train", "test")}
    assert (len(seen["train"]), len(seen["test"])) == (7, 3)
    assert not seen["train"] & seen["test"]
    assert own.profile(0).tests == {"tiny-vqa": 12}


def test_boxes_are_relative_to_their_picture(tiny: RunConfig, tmp_path: Path) -> None:
    name = picture(tmp_path / "a.png", size=(40, 20))
    boxes = [(10, 5, 20, 10), (-0.5, 0, 40, 20), (30, 0, 20, 5), (1, 1, 0, 5), (1, 1, "wide", 5)]
    write_csv(tmp_path / "examples.csv", BOX, [(name, *box) for box in boxes])
    own = opened(
        write_device(tmp_path / "d.toml", {"tiny-box": {"kind": "image-csv", "path": tmp_path}})
    )
    data = own.tasks["tiny-box"]
    want = [[0.5, 0.5, 0.5, 0.5], [39.5 / 80, 0.5, 39.5 / 40, 1.0]]
    assert data.targets("train", [0, 1]) == pytest.approx(np.array(want))
    assert data.targets("train", [0]).dtype == np.float32
    assert not data.labels("train").any()
    assert own.skipped() == {"tiny-box": {"no box in the picture": 3}}


def test_one_table_can_serve_several_tasks(tiny: RunConfig, tmp_path: Path) -> None:
    rows = [(picture(tmp_path / f"{i}.png", i, seed=i), "go", "east", 1, 1, 2, 2) for i in range(5)]
    write_csv(tmp_path / "examples.csv", ("image", "text", "answer", *BOX[1:]), rows)
    table = {"kind": "image-csv", "path": str(tmp_path)}
    own = opened(write_device(tmp_path / "d.toml", {"tiny-box": table, "tiny-vqa": table}))
    assert own.profile(0).tasks == {"tiny-vqa": 4, "tiny-box": 4}
    assert tuple(own.tasks["tiny-box"].inputs) == ("image",)


def test_a_photograph_stands_upright(tiny: RunConfig, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", size=(40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    Image.open(tmp_path / "a.png").save(tmp_path / "a.jpg", exif=exif)
    write_csv(tmp_path / "examples.csv", BOX, [("a.jpg", 0, 20, 20, 20)])
    file = write_device(tmp_path / "d.toml", {"tiny-box": {"kind": "image-csv", "path": tmp_path}})
    data = opened(file).tasks["tiny-box"]
    image = data.items("image", "train", [0])[0].load()
    assert isinstance(image, Image.Image)
    assert image.size == (20, 40)
    assert data.targets("train", [0]).tolist() == [[0.5, 0.75, 1.0, 0.5]]


def test_packaged_pictures_in_a_folder_are_the_same_items(tmp_path: Path) -> None:
    packaged = DATASETS["easy-vqa"]("easyvqa10", train_per_answer=3, test_per_answer=1, seed=1)
    rows = np.arange(30)
    for i, item in enumerate(packaged.items("image", "train", rows)):
        picture = item.load()
        assert isinstance(picture, Image.Image)
        picture.save(tmp_path / f"{i}.png")
    questions = [str(i.load()) for i in packaged.items("text", "train", rows)]
    answers = [TASKS["easyvqa10"].answers[k].title() for k in packaged.labels("train")]
    lines = [(f"{i}.png", q, a) for i, (q, a) in enumerate(zip(questions, answers, strict=True))]
    write_csv(tmp_path / "examples.csv", ("image", "text", "answer"), lines)
    table = {"easyvqa10": {"kind": "image-csv", "path": tmp_path, "test-share": 0}}
    own = opened(write_device(tmp_path / "d.toml", table), tasks=["easyvqa10"]).tasks["easyvqa10"]
    assert own.targets("train", rows).tolist() == packaged.targets("train", rows).tolist()
    for mine, theirs in zip(
        own.items("image", "train", rows), packaged.items("image", "train", rows), strict=True
    ):
        assert np.array_equal(np.asarray(mine.load()), np.asarray(theirs.load()))
    digests = [i.digest for i in own.items("text", "train", rows)]
    assert digests == [i.digest for i in packaged.items("text", "train", rows)]


@pytest.mark.parametrize("task", TASKS)
def test_answers_differ_by_more_than_case_and_space(task: str) -> None:
    assert len(vocabulary(task)) == len(TASKS[task].answers)


@pytest.mark.parametrize(("groups", "share", "want"), [
    (10, 0.2, 2), (10, 0.0, 0), (1, 0.2, 0), (3, 0.2, 1), (7, 0.5, 4), (100, 0.33, 33),
])  # fmt: skip
def test_the_share_for_testing_is_of_the_groups_and_of_each_label(
    groups: int, share: float, want: int
) -> None:
    names = np.repeat(np.arange(groups), 3)
    labels = names % 2
    test = divide(names.tolist(), labels.tolist(), share, generator(0, "x"))
    tested = set(names[test])
    assert len(tested) == want
    assert test.sum() == 3 * want
    odd = sum(int(g) % 2 for g in tested)
    assert abs(odd - want / 2) <= 1


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_names_what_it_gives(name: str) -> None:
    known = {m for spec in TASKS.values() for m in spec.inputs}
    assert set(KINDS[name].modalities) <= known
    assert KINDS[name].modalities


def test_the_page_works(tiny: RunConfig, tmp_path: Path) -> None:
    """docs/own-data.md: its files are read, and leave out what it says."""
    blocks = re.findall(r"^```(toml|csv)\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    camera, lines, sensor = (code for _, code in blocks)
    (tmp_path / "camera.toml").write_text(camera)
    for name in ("0001.jpg", "0002.jpg"):
        picture(tmp_path / "shots" / name, size=(64, 64))
    (tmp_path / "shots" / "examples.csv").write_text(lines)
    own = opened(tmp_path / "camera.toml", tasks=["easyvqa10", "easyvqa-box"])
    assert own.profile(0).tasks == {"easyvqa10": 2, "easyvqa-box": 3}
    assert own.profile(0).modalities == ("image", "text")
    assert own.skipped() == {"easyvqa10": {"unknown answer": 1}}
    watch = Path(tomllib.loads(sensor)["data"]["watch7"]["path"])
    channels = tomllib.loads(sensor)["data"]["watch7"]["channels"]
    (tmp_path / "sensor.toml").write_text(sensor.replace(str(watch), str(tmp_path / "watch")))
    for name in TASKS["watch7"].answers:
        rows = [(i, *range(6), name) for i in range(360)]
        write_csv(tmp_path / "watch" / f"{name}.csv", ("t", *channels, "answer"), rows)
    own = opened(tmp_path / "sensor.toml", tasks=["watch7"])
    assert sum(own.profile(0).tasks.values()) + sum(own.profile(0).tests.values()) == 7 * 3


def test_captions_are_read_in_the_tasks_words(tmp_path: Path) -> None:
    captions = ["Woman farmer, dark", "man  PILOT", "a dog", "", "man " * 9]
    lines = [(f"{i}.png", caption) for i, caption in enumerate(captions)]
    for name, _ in lines:
        picture(tmp_path / name, size=(9, 9))
    write_csv(tmp_path / "examples.csv", ("image", "caption"), lines)
    table = {"emoji-caption": {"kind": "image-csv", "path": tmp_path, "test-share": 0}}
    own = opened(write_device(tmp_path / "d.toml", table), tasks=["emoji-caption"])
    data, words = own.tasks["emoji-caption"], TASKS["emoji-caption"].parts
    told = [decode(row.tolist(), words) for row in data.targets("train", [0, 1])]
    assert told == ["woman farmer dark", "man pilot"]
    assert data.labels("train").tolist() == [0, 0]
    assert own.skipped() == {"emoji-caption": {"caption of other words": 3}}


@pytest.mark.parametrize(("task", "kind", "why"), [
    ("emoji-retrieval", "image-csv", r"'image-csv' does not read .*\(retrieval\); .*: none"),
    ("watch-rate", "series-csv", r"'series-csv' does not read .*\(regression\); .*: none"),
    ("watch-forecast", "series-csv", r"'series-csv' does not read .*\(forecast\); .*: none"),
])  # fmt: skip
def test_what_no_kind_reads_is_refused(task: str, kind: str, why: str, tmp_path: Path) -> None:
    table = {task: {"kind": kind, "path": tmp_path}}
    with pytest.raises(ConfigError, match=why) as caught:
        opened(write_device(tmp_path / "d.toml", table), tasks=[task])
    assert caught.value.key == f"data.{task}.kind"
