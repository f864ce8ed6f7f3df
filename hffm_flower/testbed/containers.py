"""A tree of containers, whose packets to each other take the way over the emulator.

Each container gets a TUN device and a route over it to every other one in its networks. Addresses
stay as they are. When the emulator ends the devices go, and their routes with them.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hffm_flower.errors import ConfigError, HffmError, ModuleError
from hffm_flower.ledger import DEVICE, EDGE, node_of
from hffm_flower.testbed.control import Control
from hffm_flower.testbed.namespaces import INTERFACE, MTU, Namespace, tcp_of_routes

log = logging.getLogger(__name__)

PROJECT: Final = "com.docker.compose.project"
SERVICE: Final = "com.docker.compose.service"
CACHE: Final = "HFFM_CACHE"
STATE: Final = "state"
TIMINGS: Final = "machine/timings.jsonl"
"""Where devices in containers write when their messages went, if their role files say so."""
PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Container:
    """One that is at work.

    Attributes:
        pid: Its first process, seen from here.
        addresses: Network -> address.
        cache: Folder of caches inside; empty: not known.
    """

    pid: int
    addresses: Mapping[str, str]
    cache: str = ""

    @property
    def root(self) -> Path:
        """Its files, seen from here."""
        return Path(f"/proc/{self.pid}/root")


def find_containers(project: str, nodes: Sequence[str]) -> dict[str, Container]:
    """Containers of a Compose project by node; the service ``device-3`` is ``device/3``.

    Raises:
        ConfigError: There is no Docker, or one of the nodes is not at work.
    """
    if shutil.which("docker") is None:
        raise ConfigError("--docker: there is no program 'docker'")
    ids = _docker("ps", "-q", "--filter", f"label={PROJECT}={project}").split()
    found: dict[str, Container] = {}
    for told in json.loads(_docker("inspect", *ids)) if ids else []:
        node = told["Config"]["Labels"][SERVICE].removeprefix("gpu-").replace("-", "/")
        if node in nodes:
            found[node] = _container(told)
    missing = [node for node in nodes if node not in found]
    if missing:
        raise ConfigError(
            f"--docker {project}: no container at work for {', '.join(missing)}; start the "
            "project with the settings of this topology (docker-compose up)"
        )
    return found


def _container(told: Mapping[str, Any]) -> Container:
    networks = told["NetworkSettings"]["Networks"]
    addresses = {name: n["IPAddress"] for name, n in networks.items() if n["IPAddress"]}
    environment = dict(word.split("=", 1) for word in told["Config"]["Env"] if "=" in word)
    return Container(int(told["State"]["Pid"]), addresses, environment.get(CACHE, ""))


def _docker(*words: str) -> str:
    try:
        done = subprocess.run(
            ["docker", *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise HffmError(f"docker {words[0]} has not answered for {PATIENCE_S:.0f} s") from error
    if done.returncode:
        raise ConfigError(f"--docker: docker {words[0]}: {done.stderr.strip()}")
    return done.stdout


class Attached:
    """Containers whose packets the emulator carries.

    Args:
        project: Of Compose.
        nodes: Who has to be there.
        control: The emulator's.

    Raises:
        ConfigError: One of them is not there.
    """

    def __init__(self, project: str, nodes: Sequence[str], control: Control) -> None:
        self._project, self._nodes, self._control = project, nodes, control
        self._tcp = tcp_of_routes()
        self.containers: dict[str, Container] = {}
        self.refresh()
        self._timed_before = {node: len(text) for node, text in self._timings().items()}

    def refresh(self) -> None:
        """Attach those that are new, and let all find their way to them."""
        now = find_containers(self._project, self._nodes)
        fresh = {node: c for node, c in now.items() if self.containers.get(node) != c}
        for node, container in fresh.items():
            with Namespace(container.pid) as space:
                device = space.open_tun()
                try:
                    space.ip([f"link set {INTERFACE} up mtu {MTU}"])
                    self._control.attach(node, container.addresses.values(), device)
                finally:
                    os.close(device)
            log.info("%s is attached, process %d", node, container.pid)
        if fresh:
            for container in now.values():
                self._route(container, [c for c in now.values() if c is not container])
        self.containers = now

    def _route(self, container: Container, others: Sequence[Container]) -> None:
        lines = [
            f"route replace {address} dev {INTERFACE} src {container.addresses[network]} "
            f"{self._tcp}"
            for other in others
            for network, address in other.addresses.items()
            if network in container.addresses
        ]
        with Namespace(container.pid) as space:
            space.ip(lines)

    def begun(self) -> dict[str, int] | None:
        """The edge round that each edge is in; None while no run is at work."""
        from strategies.edge_state import saved_round

        rounds: dict[str, int] = {}
        seen = False
        for node, container in self.containers.items():
            if node_of(node)[0] != EDGE:
                continue
            files = (container.root / container.cache.lstrip("/") / STATE).glob(
                f"*/{node.replace('/', '-')}.safetensors"
            )
            rounds[node] = 1
            for path in files:
                try:
                    rounds[node] = max(rounds[node], saved_round(path) + 1)
                    seen = True
                except ModuleError:
                    continue  # it was removed: the edge has ended
        return rounds if seen else None

    def timings(self, folder: Path) -> None:
        """Copy what devices have timed since they were attached into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for node, text in self._timings().items():
            ours = text[self._timed_before.get(node, 0) :]
            (folder / f"{node.replace('/', '-')}.jsonl").write_bytes(ours)

    def _timings(self) -> dict[str, bytes]:
        paths = {n: c.root / TIMINGS for n, c in self.containers.items() if node_of(n)[0] == DEVICE}
        return {node: path.read_bytes() for node, path in paths.items() if path.exists()}
