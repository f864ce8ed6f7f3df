"""`hffm up` gives the bits of `hffm run`, survives deaths, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hffm_flower.session.processes import listening
from tests.support.deployment import HFFM, ROOT

PATIENCE_S = 300.0
SETTINGS: dict[str, object] = {
    "rounds": 4,
    "tree.devices": 4,
    "tree.edges": 2,
    "data.tasks": "watch7",
    "data.train-per-answer": 6,
    "data.test-per-answer": 3,
    "data.full-modality-share": 1.0,
    "model.backbone": "small",
    "train.local-epochs": 1,
    "server.deadline-s": 60.0,
}
WORDS = [word for k, v in SETTINGS.items() for word in ("--set", f"{k}={v}")]
PERSONAL = ("--set", "server.modules=head/*=device")


class Up:
    """A running ``hffm up``."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.run, self.temporary = folder / "run", folder / "tmp"
        self.temporary.mkdir()
        self.cache = folder / "cache"
        self.said = folder / "said.log"
        with self.said.open("wb") as out:
            self.process = psutil.Popen(
                [*HFFM, "up", *WORDS, *words, "--out", str(self.run)], cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "HFFM_CACHE": str(self.cache),
                     "TMPDIR": str(self.temporary), "COLUMNS": "150"},
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip

    def wait(self) -> int:
        return int(self.process.wait(timeout=PATIENCE_S))

    def until(self, name: str, pattern: str) -> re.Match[str]:
        """Wait until a file of the run holds a text."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and self.process.poll() is None:
            if (self.run / name).exists():
                found = re.search(pattern, (self.run / name).read_text(errors="replace"))
                if found is not None:
                    return found
            time.sleep(0.1)
        raise AssertionError(f"no {pattern!r} in {name}: {self.said.read_text()}{self.log()}")

    def log(self) -> str:
        return (self.run / "run.log").read_text()

    def of_it(self) -> list[psutil.Process]:
        """Processes that this command has started, wherever they are now."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HFFM_CACHE") == str(self.cache):
                    found.append(process)
            except psutil.Error:
                continue
        return [p for p in found if p.pid != self.process.pid]

    def nothing_is_left(self) -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until and (self.of_it() or any(self.temporary.iterdir())):
            time.sleep(0.2)
        assert [p.cmdline() for p in self.of_it()] == []
        assert list(self.temporary.iterdir()) == []
        logs = "".join(p.read_text() for p in (self.run / "logs").glob("*.log"))
        ports = set(re.findall(r"running on https?://(127\.0\.0\.1:\d+)", logs))
        assert ports
        assert not any(map(listening, ports))


@pytest.fixture
def up(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Up]:
    started = Up(tmp_path, *getattr(request, "param", ()))
    yield started
    if started.process.poll() is None:
        started.process.kill()
    for process in started.of_it():
        process.kill()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Modules of ``hffm run``."""
    folder = tmp_path_factory.mktemp("simulated")
    done = subprocess.run(
        [*HFFM, "run", *WORDS, *PERSONAL, "--out", "run", "--actors", "1"], cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HFFM_CACHE": str(folder / "cache")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return bits(folder / "run")


def bits(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*.safetensors")}


@pytest.mark.parametrize(
    "up",
    [PERSONAL, pytest.param((*PERSONAL, "--insecure"), marks=pytest.mark.slow)],
    indirect=True, ids=str,
)  # fmt: skip
def test_same_files_and_bits_as_hffm_run(up: Up, simulated: dict[str, bytes]) -> None:
    assert up.wait() == 0, up.said.read_text() + up.log()
    up.nothing_is_left()
    assert bits(up.run) == simulated
    assert len(simulated) == 1 + 2 + 4
    names = {p.name for p in up.run.iterdir()}
    assert names == {
        "curves.png", "devices", "edges", "ledger.jsonl", "logs", "model.safetensors",
        "result.json", "rounds.jsonl", "run.log",
    }  # fmt: skip
    assert "4/4" in up.said.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_from_outside_leaves_nothing_behind(up: Up, number: int) -> None:
    up.until("rounds.jsonl", '"t":1')
    up.process.send_signal(number)
    assert up.wait() == (-9 if number == signal.SIGKILL else 130)
    up.nothing_is_left()
    if number != signal.SIGKILL:
        assert json.loads((up.run / "result.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_an_end_while_it_starts_leaves_nothing_behind(up: Up) -> None:
    up.until("run.log", "keys registered")
    up.process.send_signal(signal.SIGINT)
    assert up.wait() == 130
    up.nothing_is_left()
    assert json.loads((up.run / "result.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_a_dead_cloud_ends_the_run_with_the_reason(up: Up) -> None:
    up.until("rounds.jsonl", '"t":1')
    kill(up.until("run.log", r"cloud-superlink started, pid (\d+)"))
    assert up.wait() == 1
    assert "the cloud is lost: cloud-superlink died" in up.said.read_text()
    up.nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["device-1", "edge-0-node", "edge-1-guard"])
def test_a_killed_program_is_started_again(up: Up, name: str) -> None:
    up.until("rounds.jsonl", '"t":1')
    kill(up.until("run.log", rf"{name} started, pid (\d+)"))
    assert up.wait() == 0, up.said.read_text() + up.log()
    assert f"{name} died (code -9)" in up.log()
    up.nothing_is_left()


@pytest.mark.slow
def test_a_killed_server_app_of_an_edge_goes_on(up: Up) -> None:
    up.until("rounds.jsonl", '"t":1')
    superlink = psutil.Process(int(up.until("run.log", r"edge-0-superlink started, pid (\d+)")[1]))
    (app,) = [
        p for p in superlink.children(recursive=True) if "flwr-serverapp" in " ".join(p.cmdline())
    ]
    app.kill()
    assert up.wait() == 0, up.said.read_text() + up.log()
    assert "edge-0: run failed, handed in again" in up.log()
    assert len((up.run / "rounds.jsonl").read_text().splitlines()) == SETTINGS["rounds"]
    up.nothing_is_left()


@pytest.mark.slow
def test_a_killed_superlink_of_an_edge_comes_back(up: Up) -> None:
    up.until("rounds.jsonl", '"t":1')
    kill(up.until("run.log", r"edge-1-superlink started, pid (\d+)"))
    assert up.wait() == 0, up.said.read_text() + up.log()
    assert "edge-1: run failed, handed in again: its SuperLink was started again" in up.log()
    assert len((up.run / "rounds.jsonl").read_text().splitlines()) == SETTINGS["rounds"]
    up.nothing_is_left()


def kill(found: re.Match[str]) -> None:
    psutil.Process(int(found[1])).kill()
