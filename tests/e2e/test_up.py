"""`hffm up` gives the bits of `hffm run`, survives deaths, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.deployment import HFFM, ROOT
from tests.support.up import Up, bits, set_words, simulate

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
WORDS = set_words(SETTINGS)
PERSONAL = ("--set", "server.modules=head/*=device")


@pytest.fixture
def up(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Up]:
    started = Up(tmp_path, *WORDS, *getattr(request, "param", ()))
    yield started
    started.end()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Modules of ``hffm run``."""
    return bits(simulate(tmp_path_factory.mktemp("simulated"), *WORDS, *PERSONAL))


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
def test_a_second_one_into_the_same_folder_is_refused_at_once(up: Up) -> None:
    up.until("run.log", "cloud-superlink started")
    words = [*HFFM, "up", *WORDS, "--out", str(up.run)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    second = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 2, second.stdout + second.stderr
    said = " ".join(second.stderr.split())
    assert f"a run is at work in {str(up.run)!r} (pid {up.process.pid})" in said
    up.process.send_signal(signal.SIGINT)
    assert up.wait() == 130
    up.nothing_is_left()


@pytest.mark.slow
def test_a_dead_cloud_ends_the_run_with_the_reason(up: Up) -> None:
    up.until("rounds.jsonl", '"t":1')
    up.kill("cloud-superlink")
    assert up.wait() == 1
    assert "the cloud is lost: cloud-superlink died" in up.said.read_text()
    up.nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["device-1", "edge-0-node", "edge-1-guard"])
def test_a_killed_program_is_started_again(up: Up, name: str) -> None:
    up.until("rounds.jsonl", '"t":1')
    up.kill(name)
    assert up.wait() == 0, up.said.read_text() + up.log()
    assert f"{name} died (code -9)" in up.log()
    up.nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("up", [PERSONAL], indirect=True, ids=str)
def test_a_killed_server_app_of_an_edge_goes_on(up: Up, simulated: dict[str, bytes]) -> None:
    up.until("rounds.jsonl", '"t":1')
    superlink = psutil.Process(int(up.until("run.log", r"edge-0-superlink started, pid (\d+)")[1]))
    (app,) = [
        p for p in superlink.children(recursive=True) if "flwr-serverapp" in " ".join(p.cmdline())
    ]
    app.kill()
    assert up.wait() == 0, up.said.read_text() + up.log()
    assert "edge-0: run failed, handed in again" in up.log()
    assert len((up.run / "rounds.jsonl").read_text().splitlines()) == SETTINGS["rounds"]
    assert bits(up.run).keys() == simulated.keys()  # also what devices keep to themselves
    up.nothing_is_left()


@pytest.mark.slow
def test_a_killed_superlink_of_an_edge_comes_back(up: Up) -> None:
    up.until("rounds.jsonl", '"t":1')
    up.kill("edge-1-superlink")
    assert up.wait() == 0, up.said.read_text() + up.log()
    assert "edge-1: run failed, handed in again: its SuperLink was started again" in up.log()
    assert len((up.run / "rounds.jsonl").read_text().splitlines()) == SETTINGS["rounds"]
    up.nothing_is_left()
