"""``hffm data prepare``, and that ``hffm data`` takes what it took before."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hffm_flower.cli import main
from hffm_flower.data.prepare import SOURCES
from hffm_flower.tasks import PACKAGED, TASKS
from tests.support.official_data import (
    make_artvqa,
    make_gqa,
    make_hf_dataset,
    make_image_csv,
    make_series_csv,
    make_vizwiz,
)

PAGE = Path(__file__).parents[3] / "docs" / "datasets.md"
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "gqa": make_gqa,
    "artvqa": make_artvqa,
    "vizwiz": make_vizwiz,
    "image-csv": partial(make_image_csv, split=True),
    "series-csv": partial(make_series_csv, shape=(150, 6)),
    "hf-datasets": make_hf_dataset,
}


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A GQA folder; the working folder is empty."""
    monkeypatch.setenv("HFFM_DATA", str(tmp_path / "tasks"))
    monkeypatch.setenv("HFFM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return make_gqa(tmp_path / "gqa")


def hffm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[object, str]:
    monkeypatch.setattr(sys, "argv", ["hffm", *words])
    with pytest.raises(SystemExit) as exit_:
        main()
    streams = capsys.readouterr()
    return exit_.value.code or 0, streams.out + streams.err


def test_a_task_is_prepared_and_a_run_finds_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "images" / "train2.jpg").unlink()
    few = ("--train-per-answer", "13", "--test-per-answer", "3", "--seed", "4")
    code, out = hffm(
        monkeypatch, capsys,
        "data", "prepare", "gqa", "--root", str(root), "--answers", "yes,The No", *few,
    )  # fmt: skip
    assert code == 0
    assert "task gqa2, seed 4" in out
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    assert [line for line in lines if line] == [["yes", "12", "3"], ["no", "12", "3"]]
    assert "left out 1 missing file: images/train2.jpg\n" in out
    assert f"in {root.parent / 'tasks' / 'gqa2'}\n" in out
    config = Path("my.toml")
    config.write_text(
        '[data]\ntasks = ["gqa2"]\ntrain-per-answer = 12\ntest-per-answer = 3\nalpha = 9.0\n'
    )
    code, out = hffm(monkeypatch, capsys, "data", str(config), "--devices", "2", "--edges", "1")
    assert code == 0
    assert "gqa2" in out
    assert Path("data.png").exists()


def test_another_folder_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--train-per-answer", "4", "--test-per-answer", "3", "--name", "mine")
    place = str(root.parent / "place")
    words = ("data", "prepare", "gqa", "--root", str(root), *few, "--out", place)
    code, out = hffm(monkeypatch, capsys, *words)
    assert code == 0
    assert f"runs find it with HFFM_DATA={place}\n" in out
    assert Path(place, "mine", "task.toml").exists()
    code, out = hffm(monkeypatch, capsys, *words)
    assert code == 2
    assert f"error: --name: '{place}/mine' is there already; --replace" in out
    assert hffm(monkeypatch, capsys, *words, "--replace")[0] == 0


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["gqb"], "error: KIND: unknown kind 'gqb' (did you mean 'gqa'?)"),
        (["gqa"], "error: --answers: 10 answers wanted, but 0 have 100 train and 50 test"),
        (["gqa", "--answers", "1"], "error: --answers: 1 answers are no task"),
        (["gqa", "--answers=-5"], "error: --answers: -5 answers are no task"),
        (["gqa", "--answers=--5"], "error: --answers: at least 2 are needed, each once"),
        (["gqa", "--test-share", "0.5"], "error: --test-share: kind 'gqa' has no such setting"),
        (["image-csv"], "error: --name: '' is no name of a task"),
        (["vizwiz"], "error: --root: "),
    ],
)
def test_what_is_wrong_ends_with_code_2(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    part: str,
) -> None:
    code, out = hffm(monkeypatch, capsys, "data", "prepare", *words, "--root", str(root))
    assert code == 2
    assert part in out


def test_the_group_shows_both_commands(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = hffm(monkeypatch, capsys, "data", "--help")
    assert code == 0
    assert "prepare" in out
    assert "show" in out
    code, out = hffm(monkeypatch, capsys, "data", "no.toml")
    assert code == 2
    assert "cannot read the config 'no.toml'" in out


def test_the_page_works(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/datasets.md: its command lines make the tasks that it says, of folders as it says."""
    page = PAGE.read_text("utf-8")
    made = dict.fromkeys(re.findall(r"^hffm data prepare ([\w-]+)", page, re.M))
    assert list(made) == list(SOURCES)
    few = ["--train-per-answer", "3", "--test-per-answer", "2"]
    for line in re.findall(r"^hffm (data prepare .*?)(?: +#.*)?$", page, re.M):
        words = shlex.split(line)
        words[words.index("--root") + 1] = str(FOLDERS[words[2]](root.parent / words[2]))
        code, out = hffm(monkeypatch, capsys, *words, *few)
        assert code == 0, out
    tasks = ["artvqa10", "gqa10", "saved10", "shots10", "vizwiz10", "watch2"]
    assert list(TASKS) == [*PACKAGED, *tasks]
    assert all(task in page for task in tasks)
