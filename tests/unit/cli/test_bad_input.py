"""Bad input ends with code 2 and a short error, before any process is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from hffm_flower import assets
from hffm_flower.cli import main
from hffm_flower.runfiles import ROUNDS, RunFiles


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setenv("HFFM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> str:
    monkeypatch.setattr(sys, "argv", ["hffm", *words])
    with pytest.raises(SystemExit) as exit_:
        main()
    text = " ".join(capsys.readouterr().err.split())
    assert exit_.value.code == 2, text
    assert "Traceback" not in text
    return text


CASES = {
    "unknown method": (
        ["--method", "fedavg"],
        ["method", "'fedavg'", "--method", "local, star, edge-only, h-fedfm, central"],
    ),
    "a part of a deployed tree": (
        ["--set", "deploy.tier=cloud"],
        ["deploy.tier", "--set", "'cloud'", "allowed here: sim"],
    ),
    "unknown encoder": (
        ["--set", "model.encoders=image=resnet text=minilm sensor=patches"],
        ["model.encoders", "'resnet'", "lite0, minilm, patches", "--set"],
    ),
    "unknown weights": (
        ["--encoders", "none"],
        ["model.weights", "'none'", "--encoders", "'pretrained' or 'random'"],
    ),
    "encoder of another modality": (
        ["--set", "model.encoders=image=minilm text=minilm sensor=patches"],
        ["model.encoders", "'minilm' reads text, not image"],
    ),
    "unknown backbone": (
        ["--set", "model.backbone=bert"],
        ["model.backbone", "'bert'", "minilm-fusion, small"],
    ),
    "unknown task": (
        ["--set", "data.tasks=easyvqa"],
        ["data.tasks", "'easyvqa'", "did you mean 'easyvqa10'", "watch7"],
    ),
    "zero edges": (["--edges", "0"], ["tree.edges", "0", "--edges", "greater than or equal to 1"]),
    "more edges than devices": (
        ["--devices", "4", "--edges", "5"],
        ["tree.edges", "5 edges", "4 devices", "--edges"],
    ),
    "modality without an encoder": (
        ["--set", "model.encoders=image=lite0 text=minilm"],
        ["model.encoders", "'sensor'", "'watch7'", "sensor=patches"],
    ),
    "task that nobody holds": (
        ["--devices", "1", "--edges", "1"],
        ["data.tasks", "no device can train task", "more devices"],
    ),
    "period of zero": (["--period", "0"], ["tree.period", "0", "--period"]),
    "policy period of zero": (
        ["--set", "server.modules=head/*=cloud:0"],
        ["server.modules", "'0'", "E >= 1", "--set"],
    ),
    "policy that matches nothing": (
        ["--set", "server.modules=experts/*=edge"],
        ["server.modules", "'experts/*'", "adapter/fusion.4", "head/watch7"],
    ),
    "unknown server optimizer": (
        ["--set", "server.optimizer=head=sgd"],
        ["server.optimizer", "'sgd'", "mean, momentum, adam"],
    ),
    "device that is not here": (
        ["--set", "train.device=cuda:7"],
        ["train.device", "'cuda:7'", "auto", "cpu"],
    ),
    "GPUs that are not here": (
        ["--gpus-per-actor", "64"],
        ["simulation.gpus-per-actor", "--gpus-per-actor", "64 GPUs per actor"],
    ),
    "misspelt key on the command line": (
        ["--set", "train.learning-rat=1"],
        ["train.learning-rat", "did you mean 'train.learning-rate'", "--set"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_option(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, expected = CASES[name]
    text = refused(monkeypatch, capsys, "run", *words, "--out", "out")
    for part in expected:
        assert part in text
    assert not Path("out").exists()


def test_misspelt_key_in_a_file_names_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.toml").write_text("[tree]\nedgess = 3\n", encoding="utf-8")
    text = refused(monkeypatch, capsys, "run", "mine.toml")
    assert "tree.edgess (from mine.toml)" in text
    assert "did you mean 'tree.edges'" in text


def test_missing_and_broken_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "'none.toml'" in refused(monkeypatch, capsys, "run", "none.toml")
    Path("broken.toml").write_text("rounds = = 3\n", encoding="utf-8")
    assert "broken.toml is not valid TOML" in refused(monkeypatch, capsys, "run", "broken.toml")


def test_output_folder_that_holds_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    Path("out/result.json").write_text("{}", encoding="utf-8")
    text = refused(monkeypatch, capsys, "run", "--out", "out")
    assert "paths.out (from --out): 'out' already holds a run (result.json)" in text
    assert Path("out/result.json").read_text(encoding="utf-8") == "{}"


@pytest.mark.parametrize("command", ["run", "up"])
def test_output_folder_where_a_run_is_at_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    Path("out").mkdir()
    files = RunFiles.claim(Path("out"))
    (files.root / ROUNDS).unlink()  # as hffm up does before its ServerApp begins
    text = refused(monkeypatch, capsys, command, "--out", "out")
    assert "paths.out (from --out): a run is at work in 'out'" in text
    assert list(files.root.iterdir()) == []


def test_output_folder_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("", encoding="utf-8")
    text = refused(monkeypatch, capsys, "run", "--out", "file/out")
    assert "'file/out' is not writable" in text


def test_asset_with_a_wrong_hash(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = assets.ASSETS["seglearn"]
    altered = type(known)(
        known.package, known.distribution, known.version, known.licence, known.files, "0" * 64
    )
    monkeypatch.setitem(assets.ASSETS, "seglearn", altered)
    text = refused(monkeypatch, capsys, "run", "--out", "out")
    assert "asset 'seglearn'" in text
    assert f"expected sha256 {'0' * 64}, found {known.sha256}" in text
    assert "pip install --force-reinstall 'seglearn==" in text


@pytest.mark.parametrize("name", ["", ".", "x" * 300])
def test_output_names_that_are_none(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refused(monkeypatch, capsys, "run", "--smoke", "--out", name)
    assert "paths.out (from --out): " in text


def test_cache_folder_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("", encoding="utf-8")
    monkeypatch.setenv("HFFM_CACHE", str(Path("file").resolve() / "cache"))
    text = refused(monkeypatch, capsys, "run", "--smoke", "--out", "out")
    assert "paths.cache: the cache folder" in text
    assert "HFFM_CACHE" in text


@pytest.mark.parametrize(
    ("path", "why"), [("data.pdf", ".png"), ("file/x.png", "cannot be written")]
)
def test_pictures_that_cannot_be_written(
    path: str, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("", encoding="utf-8")
    assert why in refused(monkeypatch, capsys, "data", "--smoke", "--plot", path)


def test_empty_tables_that_do_not_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.toml").write_text("[tree]\n[forest]\n", encoding="utf-8")
    text = refused(monkeypatch, capsys, "run", "mine.toml")
    assert "forest (from mine.toml): unknown setting" in text
    assert "[tree]" in text


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "holds no finished run"),
        ({"result.json": "{}"}, "is not a result"),
        ({"result.json": "\x00"}, "holds no finished run"),
    ],
)
def test_folders_that_hold_no_run(
    files: dict[str, str],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("run").mkdir()
    for name, text in files.items():
        Path("run", name).write_text(text, encoding="utf-8")
    assert why in refused(monkeypatch, capsys, "eval", "run")
