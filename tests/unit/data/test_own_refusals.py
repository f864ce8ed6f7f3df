"""What is wrong with a device's file or folders: setting, value and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from tests.support.folders import camera_folder, opened, write_csv, write_device

Tables = Mapping[str, Mapping[str, object]]
BOX = ("image", "left", "top", "width", "height")


def vqa(folder: Path, **more: object) -> Tables:
    return {"tiny-vqa": {"kind": "image-csv", "path": folder, **more}}


@pytest.fixture
def camera(tiny: RunConfig, tmp_path: Path) -> Path:
    """The TOML file of a device with a camera folder beside it."""
    camera_folder(tmp_path / "shots")
    return write_device(tmp_path / "device.toml", vqa(Path("shots")))


WRONG: dict[str, tuple[Tables, list[str]]] = {
    "task": (
        {"tiny-vqu": {"kind": "image-csv", "path": "shots"}},
        ["data.tiny-vqu (from", "unknown task 'tiny-vqu'", "did you mean 'tiny-vqa'"],
    ),
    "kind": (
        {"tiny-vqa": {"kind": "image", "path": "shots"}},
        ["data.tiny-vqa.kind (from", "unknown kind 'image'",
         "allowed: hf-datasets, image-csv, series-csv"],
    ),
    "no kind": ({"tiny-vqa": {"path": "shots"}}, ["data.tiny-vqa.kind", "unknown kind ''"]),
    "kind of another modality": (
        {"tiny-move": {"kind": "image-csv", "path": "shots"}},
        ["data.tiny-move.kind", "gives image and text", "needs sensor", "give it: series-csv"],
    ),
    "no path": (
        {"tiny-vqa": {"kind": "image-csv"}},
        ["data.tiny-vqa.path", "is missing; settings: kind, path, test-share, csv"],
    ),
    "path that is not there": (
        vqa(Path("shoots")), ["data.tiny-vqa.path", "'shoots' does not exist", "relative to"],
    ),
    "path of a file": (vqa(Path("device.toml")), ["data.tiny-vqa.path", "is not a folder"]),
    "unknown setting": (
        vqa(Path("shots"), share=0.1),
        ["data.tiny-vqa.share", "unknown setting; allowed: kind, path, test-share, csv"],
    ),
    "share out of range": (
        vqa(Path("shots"), **{"test-share": 1.5}),
        ["data.tiny-vqa.test-share", "1.5 is not allowed", "less than 1"],
    ),
    "share that leaves nothing": (
        vqa(Path("shots"), **{"test-share": 0.99}),
        ["data.tiny-vqa.test-share", "no training example is left of the 20"],
    ),
    "table that is not there": (
        vqa(Path("shots"), csv="lines.csv"),
        ["data.tiny-vqa.csv", "lines.csv' cannot be read: No such file"],
    ),
    "table that is no text": (
        vqa(Path("shots"), csv="000.png"), ["data.tiny-vqa.csv", "cannot be read", "utf-8"],
    ),
    "empty table": (vqa(Path("shots"), csv="empty.csv"), ["data.tiny-vqa.csv", "it is empty"]),
    "missing column": (
        vqa(Path("shots"), csv="boxes.csv"),
        ["data.tiny-vqa.csv", "no column answer; it has: image, left"],
    ),
    "missing box": (
        {"tiny-box": {"kind": "image-csv", "path": "shots"}},
        ["data.tiny-box.csv", "no column left, top, width, height; it has: image, text, answer"],
    ),
    "nothing that can be used": (
        vqa(Path("shots"), csv="useless.csv"),
        ["data.tiny-vqa.path", "has no example of task 'tiny-vqa'", "4 missing file: a, b, c, ..."],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(camera: Path, case: str) -> None:
    shots = camera.parent / "shots"
    (shots / "empty.csv").write_text("")
    write_csv(shots / "boxes.csv", BOX, [])
    write_csv(shots / "useless.csv", ("image", "answer"), [(n, "north") for n in "abcd"])
    tables, parts = WRONG[case]
    file = write_device(camera.parent / "device.toml", tables)
    with pytest.raises(ConfigError) as caught:
        opened(file)
    for part in [*parts, str(file)]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "has no table [data.TASK]; tasks: easyvqa10"),
        ("[data]\n", "has no table [data.TASK]"),
        ("data = 3\n", "has no table [data.TASK]"),
        ("[data]\ntiny-vqa = 'shots'\n", "'shots' is no table; write [data.TASK]"),
        ("[data\n", "is not valid TOML"),
        ("[data.watch7]\nkind = 'series-csv'\npath = '.'\nwindow = 5\n",
         "none of watch7 is a task of this run; its tasks: tiny-vqa, tiny-move, tiny-box"),
    ],
)  # fmt: skip
def test_a_file_that_names_no_data_is_refused(
    tiny: RunConfig, tmp_path: Path, text: str, part: str
) -> None:
    file = tmp_path / "device.toml"
    with pytest.raises(ConfigError, match="cannot read the device's file"):
        opened(file)
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        opened(file)
    assert part in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_task_that_no_encoder_serves_is_refused(camera: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.tiny-vqa .from .*needs image, which no encoder"):
        opened(camera, served=("text", "sensor"))


def test_tasks_of_other_runs_and_other_tables_are_left_alone(
    camera: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = (
        camera.read_text()
        + '[device]\nindex = 3\n[data.watch7]\nkind = "series-csv"\npath = "."\nwindow = 5\n'
    )
    camera.write_text(text)
    assert list(opened(camera).tasks) == ["tiny-vqa"]
    assert "task 'watch7' is not one of this run's" in caplog.text
