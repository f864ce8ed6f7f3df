"""A tree of namespaces with nothing running in it, where that is allowed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from hffm_flower.session.processes import Processes
from hffm_flower.testbed.hosts import NamespaceHosts
from hffm_flower.testbed.link import Quality
from hffm_flower.testbed.namespaces import check_allowed
from hffm_flower.tree import plant

SETTINGS: dict[str, object] = {"tree.devices": 3, "tree.edges": 1, "d2d.plan": "relay"}
PATIENCE_S = 60.0


def skip_unless_allowed() -> None:
    """Skip the test, and say why, where namespaces or TUN devices cannot be made."""
    try:
        check_allowed()
    except ConfigError as error:
        pytest.skip(str(error))


class Bench:
    """Cloud, edge and three devices, each a namespace."""

    def __init__(self, folder: Path) -> None:
        network = plant(RunConfig.load(base=SETTINGS))
        self.processes = Processes(folder / "logs")
        self.hosts = NamespaceHosts(network, (), folder / "timings")

    def __enter__(self) -> Bench:
        self.processes.__enter__()
        self.hosts.__enter__()
        self.hosts.begin(self.processes)
        return self

    def __exit__(self, *error: Any) -> None:
        self.hosts.__exit__()
        self.processes.__exit__(*error)

    def join(self, a: str, b: str, quality: Quality) -> None:
        """Let a link be so, both ways."""
        self.hosts.control.change({(a, b): quality, (b, a): quality})

    def said(self, host: str, *argv: str) -> str:
        """What a program in a namespace prints."""
        done = subprocess.run(
            self.hosts.command(host, argv), capture_output=True, text=True, timeout=PATIENCE_S,
            check=False,
        )  # fmt: skip
        return done.stdout + done.stderr


def namespaces() -> set[str]:
    """Network namespaces in which there are processes, and those that have a name."""
    found = set()
    for process in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(os.readlink(process))
        except OSError:
            continue
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    return found | {line for line in mounts if " nsfs " in line}
