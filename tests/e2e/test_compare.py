"""``hffm compare`` as a whole process, and what it refuses before one is started."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from hffm_flower.cli import main
from hffm_flower.runfiles import RunFiles

HFFM = [sys.executable, "-c", "from hffm_flower.cli import main; main()"]
SMALL = [
    "--smoke", "--devices", "4", "--edges", "1",
    "--set", "data.tasks=easyvqa10 watch7", "--set", "data.train-per-answer=6",
    "--set", "data.test-per-answer=3", "--set", "train.local-epochs=1",
]  # fmt: skip
TWINS = {"edge-only": "edge-only+d2d", "h-fedfm-e2": "h-fedfm-e2+d2d"}
METHODS = [*(m for twins in TWINS.items() for m in twins), "local", "star", "central"]
LINKS = ["uplink", "downlink", "d2d", "backhaul"]
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparisons")


def command(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*HFFM, "compare", *SMALL, *words],
        cwd=folder,
        env={**os.environ, "HFFM_CACHE": str(folder / "cache"), "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=PATIENCE_S)
    return out


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    whole = json.loads((out / "table.json").read_text(encoding="utf-8"))
    return {row["method"]: row for row in whole["rows"]}


@pytest.fixture(scope="module")
def out(folder: Path) -> Path:
    process = command(
        folder, "--methods", ",".join(METHODS), "--rounds", "2", "--seed", "5", "--out", "three"
    )
    printed = finish(process)
    assert process.returncode == 0, printed
    for word in (
        *METHODS,
        "latency [s]",
        "energy [J]",
        "backhaul",
        "by kind of module",
        "results in three",
    ):
        assert word in printed, printed
    return folder / "three"


def test_tables_pictures_and_every_run_are_there(out: Path) -> None:
    for name in ("table.csv", "table.tex", "table.json", "accuracy.png", "costs.png"):
        assert (out / name).stat().st_size > 0
    for name in ("accuracy.png", "costs.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    for method in METHODS:
        files = RunFiles(out / method / "seed-5")
        assert files.result()["status"] == "finished"
        assert [r.t for r in files.rounds()] == [1, 2]
        assert (files.root / "curves.png").exists()
        assert not list(files.root.glob(".*")), "nothing of the work is left behind"
    with (out / "table.csv").open(encoding="utf-8", newline="") as file:
        assert [line["method"] for line in csv.DictReader(file)] == METHODS


def test_rows_have_what_was_asked_for(out: Path) -> None:
    rows = rows_of(out)
    assert list(rows) == METHODS
    for method, row in rows.items():
        assert 0 <= row["accuracy"] <= 1
        assert 0 <= row["accuracy_cycle"] <= 1
        assert row["accuracy_spread"] is None  # one seed
        assert list(row["bytes"]) == LINKS
        for cost in ("latency_s", "energy_j"):
            assert row[cost] is None if method == "central" else row[cost] > 0
    for plain, d2d in ((rows[a]["bytes"], rows[b]["bytes"]) for a, b in TWINS.items()):
        assert plain["d2d"] == 0 < d2d["d2d"]
        assert d2d["uplink"] < plain["uplink"] == rows["star"]["bytes"]["uplink"]
        assert d2d["backhaul"] == plain["backhaul"]
    for method in ("central", "local"):
        assert set(rows[method]["bytes"].values()) == {0}
    assert rows["star"]["bytes"]["backhaul"] > rows["h-fedfm-e2"]["bytes"]["backhaul"] > 0
    assert rows["edge-only"]["bytes"]["backhaul"] == 0
    assert len({rows[m]["latency_s"] for m in METHODS}) == len(METHODS)


def test_a_row_with_d2d_is_trained_and_agrees_with_its_twin(out: Path) -> None:
    rows = rows_of(out)
    for twins in TWINS.items():
        one, other = (rows[method]["accuracy"] for method in twins)
        assert abs(one - other) <= 0.01
        one, other = ((out / m / "seed-5" / "edges" / "0.safetensors").read_bytes() for m in twins)
        assert one != other


def test_ctrl_c_keeps_the_runs_that_have_finished(folder: Path) -> None:
    words = ("--methods", "edge-only,edge-only+d2d,star", "--rounds", "20", "--out", "stopped")
    process = command(folder, *words)
    first, second, third = (
        RunFiles(folder / "stopped" / m / "seed-1") for m in ("edge-only", "edge-only+d2d", "star")
    )
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and process.poll() is None:
        if first.has_result() and len(second.rounds()) >= 2:
            break
        time.sleep(0.1)
    assert process.poll() is None, finish(process)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    printed = " ".join(finish(process).split())
    assert process.returncode == 130, printed
    assert "interrupted: what has finished is kept in stopped" in printed
    _, alive = psutil.wait_procs(started, timeout=5)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    assert list(rows_of(folder / "stopped")) == ["edge-only"]
    statuses = [f.result()["status"] for f in (first, second)]
    assert statuses == ["finished", "interrupted"]
    assert len(first.rounds()) == 20 > len(second.rounds()) >= 2
    assert not third.root.exists(), "it was never begun"
    assert (folder / "stopped" / "accuracy.png").exists()


BAD = {
    "unknown method": (["--methods", "star,fedavg"], ["'fedavg' is unknown", "h-fedfm-e2"]),
    "no period": (["--methods", "h-fedfm"], ["does not say its period"]),
    "unknown plan": (["--methods", "edge-only+relai"], ["did you mean 'relay'"]),
    "a plan without clusters": (["--methods", "star+d2d"], ["needs clusters", "'star'"]),
    "named twice": (["--methods", "star,star"], ["named twice"]),
    "rounds that do not fit": (
        ["--methods", "edge-only,h-fedfm-e8", "--rounds", "12"],
        ["12 edge rounds are no multiple of the period 8"],
    ),
    "unknown preset": (["--preset", "large"], ["'large'", "default, small, smoke, everything"]),
    "variants and methods": (
        ["--variants", "kinds.toml", "--methods", "star"], ["exclude each other"],
    ),
    "no variants": (["--variants", "kinds.toml"], ["cannot read the config", "kinds.toml"]),
    "no seeds": (["--seeds", "0"], ["1<=x<=100", "--seeds"]),
    "negative power": (["--set", "radio.tx-power-mw=-1"], ["radio.tx-power-mw", "-1"]),
    "no bandwidth": (["--set", "radio.bandwidth-khz=0"], ["radio.bandwidth-khz", "0"]),
    "a rule that cannot be summed": (
        ["--set", "server.rule=median"], ["server.rule", "'median' does not allow"],
    ),
    "no such coordinates": (
        ["--set", "radio.coordinates=nowhere.csv"], ["cannot read the coordinates", "nowhere.csv"],
    ),
}  # fmt: skip


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> str:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(sys, "argv", ["hffm", "compare", *SMALL, *words])
    with pytest.raises(SystemExit) as exit_:
        main()
    text = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert exit_.value.code == 2, text
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("name", BAD)
def test_bad_input_starts_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HFFM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    words, expected = BAD[name]
    text = refused(monkeypatch, capsys, *words, "--out", "out")
    for part in expected:
        assert part in text
    assert not Path("out").exists()


def test_a_comparison_is_not_written_over(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    monkeypatch.setenv("HFFM_CACHE", str(out.parent / "cache"))
    text = refused(monkeypatch, capsys, "--methods", "star", "--out", str(out))
    assert "is not empty; choose another folder" in text
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
