"""A tree of `hffm cloud`, `edge` and `device`, one process each, with TLS and registered keys."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hffm_flower.errors import HffmError
from hffm_flower.pki import Party, Role
from hffm_flower.pki_folder import create
from hffm_flower.session.bundle import Flwr
from hffm_flower.session.processes import free_addresses
from tests.support.deployment import HFFM, ROOT

PATIENCE_S = 300.0
SETTINGS = """
rounds = 2
[tree]
devices = 2
edges = 1
[data]
tasks = "watch7"
train-per-answer = 6
test-per-answer = 3
full-modality-share = 1.0
[model]
backbone = "small"
[train]
local-epochs = 1
[server]
deadline-s = 60.0
"""


class Machines:
    """Roles on one machine, each in a process as on a machine of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        devices = [Party(f"device-{k}", Role.DEVICE) for k in range(2)]
        parties = [Party("cloud", Role.SERVER), Party("edge-0", Role.EDGE), *devices]
        create(folder / "pki", parties)
        (folder / "run.toml").write_text(SETTINGS)
        self.guard, link, edge_guard, edge_link, gateway = free_addresses(5)
        self.link = link
        self._write(
            "cloud", listen=self.guard, superlink=link, certificates="pki/cloud",
            nodes="pki/edge-*/supernode.pub",
        )  # fmt: skip
        self._write(
            "edge-0", index=0, upstream=self.guard, listen=edge_guard, superlink=edge_link,
            gateway=gateway, certificates="pki/edge-0", nodes="pki/device-*/supernode.pub",
            config="run.toml", out="edge", database="edge.db",
        )  # fmt: skip
        for k in range(2):
            role: dict[str, str | int] = {"superlink": edge_guard, "index": k}
            self._write(f"device-{k}", certificates=f"pki/device-{k}", **role)
        self.started: dict[str, psutil.Popen] = {}
        (folder / "tmp").mkdir()
        self.environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "HFFM_CACHE": str(folder / "cache"),
            "TMPDIR": str(folder / "tmp"), "COLUMNS": "300",
        }  # fmt: skip

    def _write(self, name: str, **role: str | int) -> None:
        lines = [f"{k.replace('_', '-')} = {json.dumps(v)}\n" for k, v in role.items()]
        (self.folder / f"{name}.toml").write_text("".join(lines))

    def start(self, *names: str) -> None:
        for name in names:
            with (self.folder / f"{name}.log").open("wb") as out:
                self.started[name] = psutil.Popen(
                    [*HFFM, name.split("-")[0], f"{name}.toml"], cwd=self.folder,
                    env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                )  # fmt: skip

    def hffm(self, *words: str) -> str:
        environment = {k: v for k, v in self.environment.items() if k != "TMPDIR"}
        done = subprocess.run(
            [*HFFM, *words], cwd=self.folder, env=environment, text=True,
            capture_output=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, out: str, *words: str) -> str:
        """Hand a run in, as soon as the cloud takes one."""
        self.until("cloud", "keys registered", 1)
        return self.hffm("submit", "cloud.toml", "run.toml", "--out", out, *words)

    def result(self, out: str) -> dict[str, Any]:
        """Of a run that has ended."""
        found: dict[str, Any] = json.loads(self.wait_for(out, "result.json").read_text())
        return found

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def logs(self) -> str:
        return "\n".join(f"== {n}\n{self.log(n)}" for n in self.started)

    def wait_for(self, *path: str) -> Path:
        file = self.folder.joinpath(*path)
        until = time.monotonic() + PATIENCE_S
        while not file.exists() and time.monotonic() < until:
            time.sleep(0.2)
        assert file.exists(), self.logs()
        return file

    def until(self, name: str, words: str, times: int) -> None:
        """Wait until a role has said so often enough."""
        until = time.monotonic() + PATIENCE_S
        while self.log(name).count(words) < times and time.monotonic() < until:
            time.sleep(0.2)
        assert self.log(name).count(words) >= times, self.logs()

    def superlink(self, name: str) -> psutil.Process:
        """The role's ``flower-superlink``."""
        below = self.started[name].children(recursive=True)
        return next(p for p in below if any("flower-superlink" in w for w in p.cmdline()))

    def left(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("TMPDIR", "").startswith(str(self.folder / "tmp")):
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    tree = Machines(tmp_path)
    yield tree
    for process in tree.left():
        process.kill()


@pytest.mark.slow
def test_a_tree_of_roles(machines: Machines) -> None:
    machines.start("device-1", "edge-0", "device-0", "cloud")
    assert "handed in" in machines.submit("first")
    machines.hffm("run", "run.toml", "--out", "simulated", "--actors", "1")
    assert machines.result("first")["status"] == "finished", machines.logs()
    edge = machines.wait_for("edge", "0", "edges", "0.safetensors")
    simulated = machines.folder / "simulated"
    cloud = machines.folder / "first" / "model.safetensors"
    assert cloud.read_bytes() == (simulated / "model.safetensors").read_bytes()
    assert edge.read_bytes() == (simulated / "edges" / "0.safetensors").read_bytes()

    below = Flwr(machines.folder / "below")
    below.connect("guard", machines.guard, machines.folder / "pki" / "device-0" / "ca.pem")
    with pytest.raises(HffmError):
        below.runs("guard")
    with pytest.raises(HffmError):
        below.run("guard", {})
    assert "refused POST b'/v1/control/list-runs'" in machines.log("cloud")

    machines.submit("other", "--seed", "9")
    assert "edge 0: its seed 1, here 9" in machines.result("other")["reason"]
    machines.submit("second")
    with pytest.raises(AssertionError, match=r"run \d+ is at work there"):
        machines.submit("too soon")
    machines.wait_for("second", "ledger.jsonl")
    machines.hffm("stop", "cloud.toml")
    assert machines.result("second")["status"] != "finished"
    machines.submit("third")  # the edge leaves the run that was stopped
    assert machines.result("third")["status"] == "finished"
    assert (machines.folder / "third" / "model.safetensors").read_bytes() == cloud.read_bytes()
    said = machines.hffm("status", "cloud.toml")
    assert "finished:completed" in said
    assert "finished:stopped" in said
    assert "1 of 1 edges online" in said

    machines.submit("fourth")
    machines.wait_for("fourth", "ledger.jsonl")
    lives = machines.log("cloud").count("keys registered")
    machines.superlink("cloud").kill()
    machines.wait_for("fourth", "result.json")
    machines.until("cloud", "keys registered", lives + 1)
    machines.submit("fifth")
    assert machines.result("fifth")["status"] == "finished"

    for number, name in zip(
        (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT), machines.started,
        strict=True,
    ):  # fmt: skip
        machines.started[name].send_signal(number)
    for name, process in machines.started.items():
        assert process.wait(timeout=60) == 0, name
        assert machines.log(name).rstrip().endswith("stopped")
    until = time.monotonic() + 30
    while machines.left() and time.monotonic() < until:
        time.sleep(0.2)
    assert machines.left() == []
    assert list((machines.folder / "tmp").iterdir()) == []
