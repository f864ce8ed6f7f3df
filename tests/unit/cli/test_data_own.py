"""``hffm data --own``: a device's owner sees what a run would use, or what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from hffm_flower.cli import main
from hffm_flower.data import TASKS
from hffm_flower.seeding import generator
from tests.support.folders import picture, write_csv, write_device


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A device with pictures and recordings for the packaged tasks."""
    monkeypatch.setenv("HFFM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    rows = [(picture(tmp_path / "vqa" / f"{i}.png", i, size=(32, 32)), "what colour is it?",
             TASKS["easyvqa10"].answers[i % 10]) for i in range(20)]  # fmt: skip
    write_csv(tmp_path / "vqa" / "examples.csv", ("image", "text", "answer"),
              [*rows, ("0.png", "and this?", "mauve [sic]")])  # fmt: skip
    for i in range(7):
        samples = generator(i, "watch").standard_normal((310, 6)).round(3)
        lines = [[*map(float, line), TASKS["watch7"].answers[i]] for line in samples]
        write_csv(
            tmp_path / "watch" / f"{i}.csv", ("ax", "ay", "az", "gx", "gy", "gz", "answer"), lines
        )
    return write_device(
        tmp_path / "device.toml",
        {
            "easyvqa10": {"kind": "image-csv", "path": "vqa"},
            "watch7": {"kind": "series-csv", "path": "watch", "window": 150},
        },
    )


def hffm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[object, str]:
    monkeypatch.setattr(sys, "argv", ["hffm", *words])
    with pytest.raises(SystemExit) as exit_:
        main()
    streams = capsys.readouterr()
    return exit_.value.code or 0, streams.out + streams.err


def test_examples_per_answer_and_what_is_left_out(
    device: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = hffm(monkeypatch, capsys, "data", "--own", str(device))
    assert code == 0
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    rows = [line for line in lines if len(line) == 5]
    assert [r[2] for r in rows] == [*TASKS["easyvqa10"].answers, *TASKS["watch7"].answers]
    assert (rows[0][:2], rows[10][:2]) == (["easyvqa10", "image text"], ["watch7", "sensor"])
    counts = np.array([[int(r[3]), int(r[4])] for r in rows])
    assert counts[:10].sum(axis=0).tolist() == [16, 4]
    assert counts[10:].sum(axis=1).tolist() == [2] * 7
    assert "easyvqa10: left out 1 unknown answer: 0.png ('mauve [sic]')" in out
    assert not Path("data.png").exists()


def test_what_is_wrong_ends_with_code_2(
    device: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device.write_text(device.read_text().replace("150", "100"))
    code, out = hffm(monkeypatch, capsys, "data", "--own", str(device))
    assert code == 2
    words = " ".join(out.split())
    assert f"data.watch7.window (from {device}): windows [100, 6] (samples, channels)" in words
    assert "the sensor encoder reads windows [150, 6], not (100, 6)" in words
