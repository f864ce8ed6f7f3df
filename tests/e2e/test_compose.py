"""docker-compose.yml: it can be read, and what it trains is what `hffm run` does, bit for bit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hffm_flower.runfiles import RunFiles
from tests.support.containers import EDGES, UP_S, Stack, no_compose, said, what_is_missing
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
