"""A device's own recordings, with a table of answers or a column of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hffm_flower.config import RunConfig
from hffm_flower.data.dataset import Split
from hffm_flower.data.own_task import OwnTask
from hffm_flower.errors import ConfigError
from tests.support.folders import opened, sensor_folder, write_csv, write_device

CHANNELS = ("ax", "ay", "az")


def move(folder: Path, **more: object) -> Path:
    table = {"kind": "series-csv", "path": folder, "window": 5, **more}
    return write_device(folder.parent / "device.toml", {"tiny-move": table})


def windows(data: OwnTask, split: Split = "train") -> NDArray[np.float32]:
    chosen = data.items("sensor", split, data.rows(split))
    return np.stack([np.asarray(item.load(), np.float32) for item in chosen])


@pytest.fixture
def folder(tiny: RunConfig, tmp_path: Path) -> Path:
    return sensor_folder(tmp_path / "watch")


def test_recordings_are_cut_into_windows(folder: Path) -> None:
    own = opened(move(folder))
    data = own.tasks["tiny-move"]
    assert own.profile(2).modalities == ("sensor",)
    assert own.profile(2).tasks == {"tiny-move": 14}
    assert own.profile(2).tests == {"tiny-move": 4}  # two of nine recordings
    assert own.skipped() == {"tiny-move": {"unknown answer": 2}}
    assert data.skipped.lines() == ["2 unknown answer: r9.csv ('Jump')"]
    train = windows(data)
    assert train.shape == (14, 5, 3)
    # The brighter channel tells the answer.
    assert train[:, :, :2].mean(axis=1).argmax(axis=1).tolist() == data.labels("train").tolist()


def test_channels_are_normalised_by_the_training_windows_alone(folder: Path) -> None:
    data = opened(move(folder, **{"test-share": 0.4})).tasks["tiny-move"]
    train, test = windows(data), windows(data, "test")
    assert train.mean(axis=(0, 1)) == pytest.approx(0, abs=1e-5)
    assert train.std(axis=(0, 1)) == pytest.approx(1, abs=1e-5)
    assert np.abs(test.mean(axis=(0, 1))).max() > 1e-3


def test_a_channel_that_never_changes_stays_finite(folder: Path) -> None:
    for path in folder.glob("r*.csv"):
        write_csv(path, CHANNELS, [(1, i, 2) for i in range(7)])
    data = opened(move(folder)).tasks["tiny-move"]
    assert np.isfinite(windows(data)).all()
    assert not windows(data)[:, :, 0].any()


def test_a_shorter_hop_gives_overlapping_windows_of_one_split(folder: Path) -> None:
    own = opened(move(folder, hop=1))
    assert sum(own.profile(0).tasks.values()) + sum(own.profile(0).tests.values()) == 9 * 8
    assert own.profile(0).tests == {"tiny-move": 2 * 8}


def test_named_channels_are_taken_in_that_order(folder: Path) -> None:
    first = windows(opened(move(folder)).tasks["tiny-move"])
    for path in folder.glob("r*.csv"):
        lines = [line.split(",") for line in path.read_text().split()]
        write_csv(
            path, ("t", "az", "ay", "ax"), [(i, *line[::-1]) for i, line in enumerate(lines[1:])]
        )
    again = windows(opened(move(folder, channels=["ax", "ay", "az"])).tasks["tiny-move"])
    assert np.array_equal(first, again)
    four = windows(opened(move(folder)).tasks["tiny-move"])
    assert four.shape == (14, 5, 4)  # the time too: channels should be named


def test_a_column_of_answers_makes_a_recording_of_each_stretch(
    tiny: RunConfig, tmp_path: Path
) -> None:
    answers = ["north"] * 7 + ["East "] * 10 + ["north", "jump"] * 2 + [""] * 5 + ["EAST"] * 5
    rows = [(i, 2 * i, -i, a) for i, a in enumerate(answers)]
    write_csv(tmp_path / "day" / "monday.csv", (*CHANNELS, "answer"), rows)
    own = opened(move(tmp_path / "day", **{"test-share": 0}))
    data = own.tasks["tiny-move"]
    assert data.labels("train").tolist() == [0, 1, 1, 1]
    assert own.skipped() == {"tiny-move": {"shorter than a window": 4, "unknown answer": 1}}
    assert data.skipped.lines()[1] == "1 unknown answer: monday.csv from sample 21 ('')"


def test_what_cannot_be_used_is_counted(folder: Path) -> None:
    write_csv(folder / "r0.csv", CHANNELS, [(1, 2, 3)] * 4)
    write_csv(
        folder / "r1.csv", CHANNELS, [(1, 2, 3)] * 6 + [(1, "nan", 3), (1, "", 3), (1, 2)] * 2
    )
    write_csv(folder / "r2.csv", ("ax", "ay"), [(1, 2)] * 9)
    (folder / "r3.csv").write_bytes(b"\xff\xfe\x00")
    (folder / "r4.csv").unlink()
    assert opened(move(folder)).skipped()["tiny-move"] == {
        "missing file": 1,
        "not a number": 1,
        "shorter than a window": 1,
        "unknown answer": 2,
        "unreadable file": 1,
        "without column az": 1,
    }


WRONG: dict[str, tuple[dict[str, object], str, str]] = {
    "no window": ({"window": None}, "data.tiny-move.window", "is missing; settings: kind, path"),
    "window": ({"window": 0}, "data.tiny-move.window", "0 is not allowed"),
    "channels": ({"channels": ["ax", "gx"]}, "data.tiny-move.channels", "no column gx; it has: ax"),
    "table": ({"csv": "labels.csv"}, "data.tiny-move.csv", "labels.csv' cannot be read"),
    "longer": ({"window": 99}, "data.tiny-move.path", "10 shorter than a window: r0.csv, r1.csv"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(folder: Path, case: str) -> None:
    change, key, part = WRONG[case]
    table = {"kind": "series-csv", "path": folder, "window": 5, **change}
    given = {k: v for k, v in table.items() if v is not None}
    with pytest.raises(ConfigError) as caught:
        opened(write_device(folder.parent / "d.toml", {"tiny-move": given}))
    assert str(caught.value).startswith(f"{key} (from ")
    assert part in str(caught.value)


def test_recordings_without_any_answers_are_refused(folder: Path) -> None:
    (folder / "examples.csv").unlink()
    with pytest.raises(ConfigError, match=r"tiny-move\.csv .*no column answer; it has: ax, ay, az"):
        opened(move(folder))
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="has no example of task 'tiny-move'; left out: nothing"):
        opened(move(folder))


def test_a_box_has_no_recordings(folder: Path) -> None:
    table = {"kind": "series-csv", "path": folder, "window": 5}
    with pytest.raises(ConfigError, match="'series-csv' gives sensor, but task 'tiny-box' needs"):
        opened(write_device(folder.parent / "d.toml", {"tiny-box": table}))
