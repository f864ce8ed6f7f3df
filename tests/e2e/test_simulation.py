"""Ray simulation through the command line: bits, interruption, a lost parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from clients import client_app
from hffm_flower.config import RunConfig
from hffm_flower.runfiles import RunFiles
from strategies.federate import federate
from tests.support.fake_grid import FakeGrid

SETTINGS = """
rounds = 2
[tree]
devices = 4
edges = 2
[data]
tasks = "easyvqa10 watch7"
train-per-answer = 6
test-per-answer = 3
full-modality-share = 1.0
[model]
backbone = "small"
[train]
local-epochs = 1
[server]
modules = "head/watch7=device"
"""
HFFM = [sys.executable, "-c", "from hffm_flower.cli import main; main()"]
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    (root / "run.toml").write_text(SETTINGS, encoding="utf-8")
    return root


def command(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*HFFM, *words],
        cwd=folder,
        env={**os.environ, "HFFM_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=PATIENCE_S)
    return out


@pytest.fixture(scope="module")
def first(folder: Path) -> Path:
    process = command(folder, "run", "run.toml", "--out", "one", "--actors", "1")
    out = finish(process)
    assert process.returncode == 0, out
    assert "mean, global IID test" in out
    return folder / "one"


def bits(run: Path) -> dict[str, bytes]:
    files = [run / "model.safetensors", *run.glob("edges/*"), *run.glob("devices/*")]
    assert len(files) == 1 + 2 + 4
    return {str(f.relative_to(run)): f.read_bytes() for f in files}


def rounds(run: Path) -> list[dict[str, object]]:
    lines = (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def test_two_ray_runs_with_other_actors_are_bit_equal(folder: Path, first: Path) -> None:
    process = command(folder, "run", "run.toml", "--out", "two", "--actors", "2")
    out = finish(process)
    assert process.returncode == 0, out
    assert bits(folder / "two") == bits(first)
    assert rounds(folder / "two") == rounds(first)


def test_ray_and_the_fake_grid_are_bit_equal(folder: Path, first: Path) -> None:
    config = RunConfig.load(folder / "run.toml").with_values(
        paths__cache=str(folder / "other-cache"), paths__state=str(folder / "state")
    )
    files = RunFiles.create(folder / "fake")
    federate(FakeGrid(client_app.app, 4, config.to_flwr()), config, files)
    ours = {p.name: p.read_bytes() for p in files.root.glob("*.safetensors")}
    ours |= {f"edges/{p.name}": p.read_bytes() for p in files.root.glob("edges/*")}
    assert ours == {k: v for k, v in bits(first).items() if not k.startswith("devices")}
    assert rounds(files.root) == rounds(first)


def test_the_folder_is_complete_and_eval_agrees(folder: Path, first: Path) -> None:
    result = json.loads((first / "result.json").read_text(encoding="utf-8"))
    assert result["status"] == "finished"
    assert result["seed"] == 1
    assert [r["t"] for r in result["rounds"]] == [1, 2]
    assert set(result["summary"]["per_task"]) == {"easyvqa10", "watch7"}
    assert result["versions"]["flwr"].startswith("1.41")
    assert (first / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(first.glob(".*")), "nothing of the work is left behind"
    process = command(folder, "eval", "one")
    out = finish(process)
    assert process.returncode == 0, out
    assert "give the figures of result.json" in out


def test_a_run_is_not_written_over(folder: Path, first: Path) -> None:
    before = bits(first)
    process = command(folder, "run", "run.toml", "--out", "one")
    out = finish(process)
    assert process.returncode == 2
    assert "already holds a run" in " ".join(out.split())
    assert bits(first) == before


def tree(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def wait_for_rounds(run: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and process.poll() is None:
        lines = run / "rounds.jsonl"
        if lines.exists() and lines.read_text(encoding="utf-8").count("\n") >= 2:
            return
        time.sleep(0.1)
    raise AssertionError(f"no round was finished: {finish(process)}")


@pytest.fixture
def long_run(folder: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    name = request.node.name
    process = command(folder, "run", "run.toml", "--out", name, "--rounds", "4000", "--actors", "1")
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def gone(processes: list[psutil.Process], within_s: float) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_ctrl_c_keeps_the_rounds_and_leaves_no_process(
    folder: Path, long_run: subprocess.Popen[str], request: pytest.FixtureRequest
) -> None:
    run = folder / request.node.name
    wait_for_rounds(run, long_run)
    started = tree(long_run.pid)
    assert any("raylet" in p.name() for p in started)
    long_run.send_signal(signal.SIGINT)
    out = finish(long_run)
    assert long_run.returncode == 130, out
    assert f"interrupted: the rounds so far are kept in {request.node.name}" in out
    assert gone(started, within_s=5) == []
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert result["status"] == "interrupted"
    assert len(result["rounds"]) == len(rounds(run)) >= 2
    assert (run / "model.safetensors").stat().st_size > 0
    assert (run / "curves.png").exists()


def test_a_killed_worker_ends_the_run_with_the_reason(
    folder: Path, long_run: subprocess.Popen[str], request: pytest.FixtureRequest
) -> None:
    run = folder / request.node.name
    wait_for_rounds(run, long_run)
    started = tree(long_run.pid)
    (child,) = psutil.Process(long_run.pid).children()
    child.kill()
    out = " ".join(finish(long_run).split())
    assert long_run.returncode == 1, out
    assert "the run's process ended with code -9" in out
    assert gone(started, within_s=5) == []
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert result["status"] == "failed"
    assert len(result["rounds"]) == len(rounds(run)) >= 2
    assert (run / "curves.png").exists()


def test_a_killed_actor_costs_its_message_not_the_run(
    folder: Path, long_run: subprocess.Popen[str], request: pytest.FixtureRequest
) -> None:
    run = folder / request.node.name
    wait_for_rounds(run, long_run)
    actor = next(p for p in tree(long_run.pid) if "ClientAppActor" in " ".join(p.cmdline()))
    before = len(rounds(run))
    actor.kill()
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and len(rounds(run)) < before + 12:
        time.sleep(0.2)
    assert long_run.poll() is None, finish(long_run)
    after = rounds(run)[before:]
    assert len(after) >= 12
    assert len([r for r in after if r["dropped"]]) <= 3
    assert all(r["devices"] for r in after[-3:]), "devices train again"
    long_run.send_signal(signal.SIGINT)
    finish(long_run)


def test_a_killed_parent_takes_everything_along(
    folder: Path, long_run: subprocess.Popen[str], request: pytest.FixtureRequest
) -> None:
    wait_for_rounds(folder / request.node.name, long_run)
    started = tree(long_run.pid)
    long_run.kill()
    long_run.wait()
    assert gone(started, within_s=40) == []


def test_central_trains_on_the_pooled_data(folder: Path) -> None:
    process = command(folder, "run", "run.toml", "--out", "central", "--method", "central")
    out = finish(process)
    assert process.returncode == 0, out
    result = json.loads((folder / "central" / "result.json").read_text(encoding="utf-8"))
    assert result["status"] == "finished"
    assert result["summary"]["tier"] == "cloud"
    assert [r["t"] for r in result["rounds"]] == [1, 2]
    process = command(folder, "eval", "central")
    out = finish(process)
    assert process.returncode == 0, out


def test_the_users_own_folder_is_not_imported_from(folder: Path, first: Path) -> None:
    here = folder / "a project of the user, with a temporary folder of a very long name"
    (here / "clients").mkdir(parents=True)
    (here / "clients" / "__init__.py").touch()
    (here / "queue.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    (here / "run.toml").write_text(SETTINGS, encoding="utf-8")
    process = subprocess.run(
        [sys.executable, "-P", *HFFM[1:], "run", "run.toml", "--out", "out"],  # as if installed
        cwd=here,
        env={**os.environ, "HFFM_CACHE": str(folder / "cache"), "TMPDIR": str(here)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert bits(here / "out") == bits(first)


def test_a_run_that_cannot_begin_fails_with_the_reason(folder: Path) -> None:
    words = ("run", "run.toml", "--out", "failed", "--set", "server.deadline-s=0.01")
    process = command(folder, *words)
    out = " ".join(finish(process).split())
    assert process.returncode == 1, out
    assert "failed: 0 of 4 " in out  # nodes online, or registered
    result = json.loads((folder / "failed" / "result.json").read_text(encoding="utf-8"))
    assert result["status"] == "failed"
    assert result["reason"].startswith("0 of 4 ")
    process = command(folder, "eval", "failed")
    assert "is failed, not finished" in " ".join(finish(process).split())
    assert process.returncode == 2
