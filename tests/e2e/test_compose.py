"""docker-compose.yml: it can be read, and what it trains is what `hffm run` does, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hffm_flower.runfiles import RunFiles
from tests.support.deployment import HFFM, ROOT

IMAGES = ("hffm/server:0.1.0", "hffm/device:0.1.0")
UP_S = 1800.0
EDGES = ("edge-0", "edge-1")


def said(*words: str | Path, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, words)), cwd=ROOT, capture_output=True, text=True, timeout=timeout_s,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def composes() -> list[tuple[str, ...]]:
    """Composes of this machine: 1.29 or v2 by its own name, v2 as Docker's plugin."""
    found: list[tuple[str, ...]] = [("docker-compose",)] * bool(shutil.which("docker-compose"))
    if shutil.which("docker") and said("docker", "compose", "version").returncode == 0:
        found.append(("docker", "compose"))
    return found


@pytest.mark.parametrize("profile", ["", "third-cluster", "gpu"])
def test_the_file_can_be_read(profile: str) -> None:
    if not (found := composes()):
        pytest.skip("there is neither docker-compose nor docker compose here")
    for compose in found:
        done = said(*compose, "--profile", profile, "config", "-q")
        assert (done.returncode, done.stderr) == (0, ""), compose


def what_is_missing() -> str:
    """Why no tree can be brought up in containers here; empty if it can."""
    if not composes():
        return "there is neither docker-compose nor docker compose here"
    if said("docker", "info").returncode:
        return "no Docker engine answers here"
    absent = [name for name in IMAGES if said("docker", "image", "inspect", name).returncode]
    return f"no image {', '.join(absent)} here; deploy/build.sh makes it" if absent else ""


class Stack:
    """The file, up under a name of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.compose = (*composes()[0], "-p", name)

    def __call__(self, *words: str, timeout_s: float = 120.0) -> str:
        done = said(*self.compose, *words, timeout_s=timeout_s)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def container(self, service: str) -> str:
        labels = {"project": self.name, "service": service}
        filters = [f"--filter=label=com.docker.compose.{k}={v}" for k, v in labels.items()]
        (found,) = said("docker", "ps", "--all", "--quiet", *filters).stdout.split()
        return found

    def fetch(self, service: str, path: str, to: Path) -> Path:
        done = said("docker", "cp", f"{self.container(service)}:{path}", to)
        assert done.returncode == 0, done.stderr
        return to


@pytest.fixture
def stack() -> Iterator[Stack]:
    if missing := what_is_missing():
        pytest.skip(missing)
    up = Stack(f"hffm-test-{os.getpid()}")
    yield up
    said(*up.compose, "down", "--volumes", "--timeout", "20", timeout_s=300.0)


@pytest.mark.slow
def test_it_trains_the_bits_of_hffm_run(stack: Stack, tmp_path: Path) -> None:
    stack("up", "--detach", "--no-build", timeout_s=UP_S)
    ended = said("docker", "wait", stack.container("submit"), timeout_s=UP_S)
    assert ended.stdout.strip() == "0", stack("logs")
    assert "round 6/6" in stack("logs", "submit")
    (run,) = stack.fetch("cloud", "/results/runs", tmp_path / "runs").iterdir()
    assert json.loads((run / "result.json").read_text())["status"] == "finished"

    simulated = tmp_path / "simulated"
    settings = ROOT / "deploy" / "compose" / "run.toml"
    done = said(*HFFM, "run", settings, "--out", simulated, "--actors", "1", timeout_s=UP_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (run / "model.safetensors").read_bytes() == (
        simulated / "model.safetensors"
    ).read_bytes()
    for index, edge in enumerate(EDGES):
        file = stack.fetch(edge, f"/machine/runs/0/edges/{index}.safetensors", tmp_path / edge)
        want = simulated / "edges" / f"{index}.safetensors"
        assert file.read_bytes() == want.read_bytes(), edge
    assert peer_transfers(run) == peer_transfers(simulated) > 0

    assert unconfined(stack, ("cloud", *EDGES, "device-0")) == []


def peer_transfers(run: Path) -> int:
    """How many messages went from device to device."""
    rows = [row for some in RunFiles(run).transfers().values() for row in some]
    return sum(row.src.startswith("device/") and row.dst.startswith("device/") for row in rows)


def unconfined(stack: Stack, services: Sequence[str]) -> list[str]:
    """Services of which a process has a capability, is root, or can write to its image."""
    look = (
        "grep -qx 'CapEff:[[:space:]]*0*' /proc/self/status && test $(id -u) = 10001 "
        "&& ! touch /opt/hffm/mine 2> /dev/null && grep -qx 'NoNewPrivs:[[:space:]]*1' "
        "/proc/self/status"
    )
    return [
        service for service in services
        if said("docker", "exec", stack.container(service), "sh", "-c", look).returncode
    ]  # fmt: skip
