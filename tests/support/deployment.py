"""Flower's own programs on loopback: a SuperLink, nodes of either kind, runs handed in."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

ROOT = Path(__file__).parents[2]
PACKAGES = ("hffm_flower", "strategies", "clients")
BIN = Path(sys.executable).parent
HFFM = [sys.executable, "-c", "from hffm_flower.cli import main; main()"]
PATIENCE_S = 120.0


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Deployment:
    """Processes in one folder, all ended with it.

    Args:
        folder: For logs, Flower's home, the app, the runs.
        certs: A folder of `hffm_flower.pki_folder`: TLS and registered nodes; None: insecure.
        database: Whether the SuperLink keeps its state in a file.
    """

    def __init__(self, folder: Path, certs: Path | None = None, *, database: bool = False) -> None:
        self.folder, self.certs = folder, certs
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._started: dict[str, psutil.Process] = {}
        self._database = ["--database", str(folder / "state.db")] if database else []
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(ROOT),
            "FLWR_HOME": str(folder / "flwr-home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "HFFM_CACHE": str(folder / "cache"),
        }
        (folder / "flwr-home").mkdir(exist_ok=True)
        trust = f'root-certificates = "{certs}/cloud/ca.pem"' if certs else "insecure = true"
        here = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{self.address}"\n'
        (folder / "flwr-home" / "config.toml").write_text(here + trust, encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.end(*self._started.values())

    def start(self, name: str, *command: str | Path) -> psutil.Process:
        """Start a program of this environment; its output goes to ``NAME.log``."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = psutil.Popen(
                list(map(str, command)), cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._started[name] = process
        return process

    def superlink(self) -> psutil.Process:
        """Start the SuperLink and wait until it listens."""
        tls: list[str | Path] = ["--insecure"]
        if self.certs is not None:
            own = self.certs / "cloud"
            tls = ["--ssl-certfile", own / "cert.pem", "--ssl-keyfile", own / "key.pem",
                   "--ssl-ca-certfile", own / "ca.pem", "--enable-supernode-auth"]  # fmt: skip
        process = self.start(
            "superlink", BIN / "flower-superlink", *tls, "--host", "127.0.0.1",
            "--port", str(self.port), "--disable-runtime-dependency-installation", *self._database,
        )  # fmt: skip
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and process.is_running():
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return process
            time.sleep(0.1)
        raise AssertionError(f"no SuperLink: {self.log('superlink')}")

    def running(self, name: str) -> psutil.Process:
        """The program that was started last under this name."""
        return self._started[name]

    def node(self, index: int) -> psutil.Process:
        """Start ``hffm node`` as device ``index``."""
        config = ("--superlink", self.address, "--node-config", f"partition-id={index}")
        return self.start(f"node-{index}", *HFFM, "node", *config, *self._node_tls(index))

    def supernode(self, index: int) -> psutil.Process:
        """Start Flower's own runner as device ``index``."""
        return self.start(
            f"node-{index}", BIN / "flower-supernode", "--superlink", self.address,
            "--host", "127.0.0.1", "--port", str(free_port()),
            "--node-config", f"partition-id={index}", *self._node_tls(index),
        )  # fmt: skip

    def _node_tls(self, index: int) -> tuple[str | Path, ...]:
        if self.certs is None:
            return ("--insecure",)
        own = self.certs / f"device-{index}"
        return ("--root-certificates", own / "ca.pem",
                "--auth-supernode-private-key", own / "supernode.key")  # fmt: skip

    def flwr(self, *words: str | Path) -> str:
        """Run a ``flwr`` command and return what it printed."""
        done = subprocess.run(
            [str(BIN / "flwr"), *map(str, words)], cwd=self.folder, env=self.environment,
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def register(self, index: int) -> None:
        """Register the key of device ``index``."""
        assert self.certs is not None
        self.flwr("supernode", "register", self.certs / f"device-{index}" / "supernode.pub", "here")

    def submit(self, settings: Mapping[str, object], out: str) -> Path:
        """Hand in a run of the project; the folder where its results will be."""
        app = self.folder / "hffm-flower"
        if not app.exists():
            app.mkdir()
            for package in PACKAGES:
                no_caches = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / package, app / package, ignore=no_caches)
            for name in (".gitignore", "LICENSE", "pyproject.toml"):
                shutil.copy(ROOT / name, app / name)
        every = {**settings, "paths.out": str(self.folder / out)}
        overrides = " ".join(f"{k}={json.dumps(v)}" for k, v in every.items())
        self.flwr("run", app, "here", "--run-config", overrides)
        return self.folder / out

    def wait(self, run: Path) -> dict[str, object]:
        """What is in ``result.json``, once it is there."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            if (run / "result.json").exists():
                result: dict[str, object] = json.loads((run / "result.json").read_text("utf-8"))
                return result
            time.sleep(0.1)
        raise AssertionError("\n".join(self.log(p.stem) for p in self.folder.glob("*.log")))

    def log(self, name: str) -> str:
        """What a program has printed so far."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def end(self, *processes: psutil.Process) -> None:
        """End processes and all that they have started."""
        tree = [*processes]
        for process in processes:
            if process.is_running():
                tree += process.children(recursive=True)
                process.terminate()
        _, left = psutil.wait_procs(tree, timeout=10)
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=5)
