"""docker-compose.yml: it can be read, and what it trains is what `hffm run` does, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hffm_flower.runfiles import RunFiles
from hffm_flower.testbed.namespaces import INTERFACE
from tests.support.bench import skip_unless_allowed
from tests.support.containers import DEVICES, EDGES, UP_S, Stack, no_compose, said, what_is_missing
from tests.support.deployment import HFFM, ROOT

COMPOSES = pytest.mark.parametrize("compose", ["docker-compose", "docker compose"])
"""1.29 or v2 by its own name, and v2 as Docker's plugin."""


@COMPOSES
@pytest.mark.parametrize("profile", ["", "third-cluster", "gpu"])
def test_the_file_can_be_read(compose: str, profile: str) -> None:
    if missing := no_compose(compose):
        pytest.skip(missing)
    done = said(*compose.split(), "--profile", profile, "config", "-q")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def stack(compose: str) -> Iterator[Stack]:
    if missing := what_is_missing(compose):
        pytest.skip(missing)
    with Stack(compose, f"hffm-test-{os.getpid()}") as up:
        yield up


@COMPOSES
@pytest.mark.slow
def test_it_trains_the_bits_of_hffm_run(stack: Stack, tmp_path: Path) -> None:
    stack.up()
    assert stack.ended() == 0, stack("logs")
    assert "round 6/6" in stack("logs", "submit")
    (run,) = stack.runs(tmp_path / "runs")
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


@COMPOSES
@pytest.mark.slow
def test_a_third_cluster_joins_by_its_profile(stack: Stack, tmp_path: Path) -> None:
    settings = tmp_path / "run.toml"
    usual = (ROOT / "deploy" / "compose" / "run.toml").read_text()
    larger = usual.replace("devices = 4", "devices = 6").replace("edges = 2", "edges = 3")
    settings.write_text(larger.replace("rounds = 6", "rounds = 2"))
    settings.chmod(0o644)
    stack.environment |= {"COMPOSE_PROFILES": "third-cluster", "HFFM_SETTINGS": str(settings)}
    stack.up()
    assert stack.ended() == 0, stack("logs")
    (run,) = stack.runs(tmp_path / "runs")
    rounds = RunFiles(run).rounds()
    assert len(rounds) == 2
    assert not any(r.dropped or r.void for r in rounds)
    simulated = tmp_path / "simulated"
    done = said(*HFFM, "run", settings, "--out", simulated, "--actors", "1", timeout_s=UP_S)
    assert done.returncode == 0, done.stdout + done.stderr
    model = "model.safetensors"
    assert (run / model).read_bytes() == (simulated / model).read_bytes()


@COMPOSES
@pytest.mark.slow
def test_links_between_containers_are_shaped(stack: Stack, tmp_path: Path) -> None:
    skip_unless_allowed()
    settings = ROOT / "deploy" / "compose" / "run.toml"
    stack.up("cloud", *EDGES, *DEVICES)
    bed = subprocess.Popen(
        [*HFFM, "testbed", settings, "--docker", stack.name, "--out", tmp_path / "bed"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        while INTERFACE not in stack.interfaces("device-3"):
            assert bed.poll() is None, bed.communicate()[0]
            time.sleep(0.5)
        stack.up("submit")
        assert stack.ended() == 0, stack("logs")
        words, _ = bed.communicate(timeout=60.0)
    finally:
        bed.kill()
    assert bed.returncode == 0, words
    told = json.loads((tmp_path / "bed" / "testbed.json").read_text())
    among = [m for m in told["messages"] if m["link"] == "d2d"]
    assert {m["t"] for m in among} == set(range(1, 7))
    assert all(m["ratio"] is None or m["ratio"] > 0.9 for m in among if m["t"] > 1)
    assert {(e["edge"], e["t"]) for e in told["events"]} >= {(0, 6), (1, 6)}
    assert not any(INTERFACE in stack.interfaces(name) for name in ("cloud", *EDGES, *DEVICES))
