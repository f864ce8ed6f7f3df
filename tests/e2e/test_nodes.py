"""Long-lived nodes under Flower's own SuperLink give the bits of `hffm run`."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hffm_flower.pki import Party, Role
from hffm_flower.pki_folder import create
from tests.support.deployment import HFFM, PATIENCE_S, ROOT, Deployment

DEVICES = 2
LIGHT = ("--app", "tests.support.light_app:app")
SETTINGS: dict[str, object] = {
    "rounds": 2,
    "tree.devices": DEVICES,
    "tree.edges": 1,
    "data.tasks": "watch7",
    "data.train-per-answer": 6,
    "data.test-per-answer": 3,
    "data.full-modality-share": 1.0,
    "model.backbone": "small",
    "train.local-epochs": 1,
    "server.deadline-s": 60.0,
}


class Simulated:
    """``hffm run`` of the settings, at work while the deployments start."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        sets = [word for k, v in SETTINGS.items() for word in ("--set", f"{k}={v}")]
        self.process = subprocess.Popen(
            [*HFFM, "run", *sets, "--out", "run", "--actors", "1"], cwd=folder, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HFFM_CACHE": str(folder / "cache")},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def bits(self) -> dict[str, bytes]:
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0, out
        return bits(self.run)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulated]:
    started = Simulated(tmp_path_factory.mktemp("simulated"))
    yield started
    if started.process.poll() is None:
        started.process.terminate()
        started.process.communicate()


@pytest.fixture(scope="module")
def simulated_bits(simulated: Simulated) -> Callable[[], dict[str, bytes]]:
    """Waits for the simulation, once."""
    return functools.cache(simulated.bits)


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, simulated: Simulated
) -> Iterator[tuple[Deployment, list[psutil.Process]]]:
    """A SuperLink without TLS, and nodes that need not wait for it."""
    with Deployment(tmp_path_factory.mktemp("plain")) as deployment:
        nodes = [deployment.node(index) for index in range(DEVICES)]
        deployment.superlink()
        yield deployment, nodes


def bits(run: Path) -> dict[str, bytes]:
    files = [run / "model.safetensors", run / "edges" / "0.safetensors"]
    return {f.name: f.read_bytes() for f in files}


Plain = tuple[Deployment, list[psutil.Process]]
Bits = Callable[[], dict[str, bytes]]


def logged(deployment: Deployment, name: str, text: str, times: int = 1) -> None:
    """Wait until a program has printed ``text`` so often."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if deployment.log(name).count(text) >= times:
            return
        time.sleep(0.1)
    raise AssertionError(f"{name} has not printed {text!r}:\n{deployment.log(name)}")


def test_same_bits_as_in_simulation(plain: Plain, simulated_bits: Bits) -> None:
    deployment, _ = plain
    run = deployment.submit(SETTINGS, "run")
    result = deployment.wait(run)
    assert result["status"] == "finished", result
    assert bits(run) == simulated_bits()


def test_an_app_that_raises_answers_with_code_2(plain: Plain) -> None:
    deployment, nodes = plain
    result = deployment.wait(deployment.submit({**SETTINGS, "paths.cache": "/dev/null/x"}, "bad"))
    assert result["status"] == "failed"
    assert "error 2: ConfigError" in str(result["reason"])
    assert all(node.is_running() for node in nodes)


def test_nodes_come_back_to_a_superlink_that_forgot_them_and_leave_in_peace(plain: Plain) -> None:
    deployment, nodes = plain
    deployment.end(deployment.running("superlink"))
    deployment.superlink()
    for index in range(DEVICES):
        logged(deployment, f"node-{index}", "is online", times=2)
        assert "refuses this node (401)" in deployment.log(f"node-{index}")
    for node, number in zip(nodes, (signal.SIGTERM, signal.SIGINT), strict=True):
        node.send_signal(number)
        assert node.wait(timeout=10) == 0
    for index in range(DEVICES):
        assert deployment.log(f"node-{index}").rstrip().endswith("stopped")
    logged(deployment, "superlink", "[Fleet.DeactivateNode]", times=DEVICES)


def test_tls_and_registered_keys(tmp_path: Path, simulated_bits: Bits) -> None:
    devices = [Party(f"device-{k}", Role.DEVICE) for k in range(DEVICES)]
    for folder in ("certs", "other"):
        create(tmp_path / folder, [Party("cloud", Role.SERVER), *devices])
    with Deployment(tmp_path / "deployment", tmp_path / "certs") as deployment:
        stranger = deployment.start(
            "stranger", *HFFM, "node", "--superlink", deployment.address, *LIGHT,
            "--root-certificates", tmp_path / "other" / "cloud" / "ca.pem",
            "--auth-supernode-private-key", tmp_path / "certs" / "device-0" / "supernode.key",
        )  # fmt: skip
        keyless = deployment.start(
            "keyless", *HFFM, "node", "--superlink", deployment.address, *LIGHT,
            "--root-certificates", tmp_path / "certs" / "device-0" / "ca.pem",
        )  # fmt: skip
        deployment.superlink()
        for index in range(DEVICES):
            deployment.node(index)
        logged(deployment, "node-0", "does not know this node's key")
        for index in range(DEVICES):
            deployment.register(index)
        run = deployment.submit(SETTINGS, "run")
        result = deployment.wait(run)
        assert result["status"] == "finished", result
        assert bits(run) == simulated_bits()
        assert (stranger.wait(timeout=10), keyless.wait(timeout=10)) == (2, 2)
        assert "is not trusted" in deployment.log("stranger")
        assert "admits registered keys only" in deployment.log("keyless")
