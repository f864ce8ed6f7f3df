"""docker-compose.yml, brought up under a name of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.support.deployment import ROOT

IMAGES = ("hffm/server:0.1.0", "hffm/device:0.1.0")
EDGES = ("edge-0", "edge-1")
DEVICES = ("device-0", "device-1", "device-2", "device-3")
UP_S = 1800.0


def said(
    *words: str | Path, timeout_s: float = 120.0, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, words)), cwd=ROOT, capture_output=True, text=True, timeout=timeout_s,
        check=False, stdin=subprocess.DEVNULL, env=os.environ | (environment or {}),
    )  # fmt: skip


def no_compose(compose: str) -> str:
    """Why a Compose cannot be used here; empty if it can."""
    words = compose.split()
    there = shutil.which(words[0]) and said(*words, "version").returncode == 0
    return "" if there else f"there is no {compose} here"


def what_is_missing(compose: str) -> str:
    """Why no tree can be brought up in containers here; empty if it can."""
    if missing := no_compose(compose):
        return missing
    if said("docker", "info").returncode:
        return "no Docker engine answers here"
    absent = [name for name in IMAGES if said("docker", "image", "inspect", name).returncode]
    return f"no image {', '.join(absent)} here; deploy/build.sh makes it" if absent else ""


class Stack:
    """The file under a name of its own; gone with its volumes at the end.

    Args:
        compose: ``docker-compose`` or ``docker compose``.
        name: Of the project.
        environment: Knobs that are not as ``.env`` says.
    """

    def __init__(self, compose: str, name: str, **environment: str) -> None:
        self.name, self.environment = name, environment
        self.compose = (*compose.split(), "-p", name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self("down", "--volumes", "--timeout", "20", timeout_s=300.0)

    def __call__(self, *words: str, timeout_s: float = 120.0) -> str:
        done = said(*self.compose, *words, timeout_s=timeout_s, environment=self.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def up(self, *services: str) -> None:
        """Start it; one waits for health where the file says so."""
        self("up", "--detach", "--no-build", *services, timeout_s=UP_S)

    def container(self, service: str) -> str:
        labels = {"project": self.name, "service": service}
        filters = [f"--filter=label=com.docker.compose.{k}={v}" for k, v in labels.items()]
        (found,) = said("docker", "ps", "--all", "--quiet", *filters).stdout.split()
        return found

    def about(self, service: str, what: str) -> str:
        """What ``docker inspect`` says of a service's container, by a Go template."""
        return said("docker", "inspect", "--format", what, self.container(service)).stdout.strip()

    def interfaces(self, service: str) -> list[str]:
        """Names of a container's network interfaces."""
        return said(
            "docker", "exec", self.container(service), "ls", "/sys/class/net"
        ).stdout.split()

    def ended(self) -> int:
        """Wait for the run that was handed in, and give its exit code."""
        waited = said("docker", "wait", self.container("submit"), timeout_s=UP_S)
        return int(waited.stdout)

    def fetch(self, service: str, path: str, to: Path) -> Path:
        done = said("docker", "cp", f"{self.container(service)}:{path}", to)
        assert done.returncode == 0, done.stderr
        return to

    def runs(self, to: Path) -> list[Path]:
        """Folders of the runs, by age."""
        return sorted(self.fetch("cloud", "/results/runs", to).iterdir())
