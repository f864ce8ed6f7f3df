"""A tree of containers, whose packets to each other take the way over the emulator.

Each container gets a TUN device and a route over it to every other one in its networks. Addresses
stay as they are. When the emulator ends the devices go, and their routes with them.
"""

from __future__ import annotations

import contextlib
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
from hffm_flower.testbed.inside import open_folder, read_file, round_of
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
    found = at_work(project, nodes)
    missing = [node for node in nodes if node not in found]
    if missing:
        raise ConfigError(
            f"--docker {project}: no container at work for {', '.join(missing)}; start the "
            "project with the settings of this topology (docker-compose up)"
        )
    return found


def at_work(project: str, nodes: Sequence[str]) -> dict[str, Container]:
    """As `find_containers`, without nodes whose container is away or starts again just now.

    Raises:
        ConfigError: There is no Docker, or it cannot tell.
    """
    if shutil.which("docker") is None:
        raise ConfigError("--docker: there is no program 'docker'")
    ids = _docker("ps", "-q", "--filter", f"label={PROJECT}={project}").split()
    found: dict[str, Container] = {}
    try:
        for told in json.loads(_docker("inspect", *ids)) if ids else []:
            node = told["Config"]["Labels"][SERVICE].removeprefix("gpu-").replace("-", "/")
            if node in nodes and told["State"]["Pid"]:  # 0: it is between two lives
                found[node] = _container(told)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--docker: docker inspect does not answer as Docker's does: {error!r}"
        ) from error
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
        self._rounds: dict[str, int] = {}
        for node, why in self._attach(find_containers(project, nodes)).items():
            raise ConfigError(f"--docker {project}: {node} cannot be attached: {why}") from why
        self._timed_before = {node: len(text) for node, text in self._timings().items()}

    def refresh(self) -> None:
        """Attach those that are new, and let all find their way to them.

        One that is away, or goes while it is looked at, has its turn at the next call.
        """
        try:
            now = at_work(self._project, self._nodes)
        except HffmError as error:  # also: one has gone between two questions
            log.warning("containers are looked for again: %s", error)
            return
        for node, why in self._attach(now).items():
            log.warning("%s is attached later: %s", node, why)

    def _attach(self, now: Mapping[str, Container]) -> dict[str, OSError | HffmError]:
        """Attach those that are new; why some could not be."""
        failed: dict[str, OSError | HffmError] = {}
        fresh = {node: c for node, c in now.items() if self.containers.get(node) != c}
        for node, container in fresh.items():
            try:
                with Namespace(container.pid) as space:
                    device = space.open_tun()
                    try:
                        space.ip([f"link set {INTERFACE} up mtu {MTU}"])
                        self._control.attach(node, container.addresses.values(), device)
                    finally:
                        os.close(device)
            except (OSError, HffmError) as error:
                failed[node] = error
            else:
                log.info("%s is attached, process %d", node, container.pid)
        if fresh:
            for node, container in now.items():
                if node in failed:
                    continue
                try:
                    self._route(container, [c for c in now.values() if c is not container])
                except (OSError, HffmError) as error:
                    failed[node] = error
                    self._control.detach(node)  # its device goes, so that it can have a new one
        self.containers = {node: c for node, c in now.items() if node not in failed}
        return failed

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
        """The edge round that each edge is in; None while no run is at work.

        An edge has a state from the end of its first edge round on; until then it is in round 0
        here. One that is away is where it was, unless all containers are away.
        """
        if not self.containers:
            return None
        for node in self._nodes:
            if node_of(node)[0] == EDGE:
                with contextlib.suppress(OSError):  # it is away
                    self._rounds[node] = self._round(node)
        return dict(self._rounds) if any(self._rounds.values()) else None

    def _round(self, node: str) -> int:
        """Of an edge; 0: it has no run.

        Raises:
            OSError: It is away.
        """
        if node not in self.containers:
            raise FileNotFoundError(f"{node} is away")
        root, cache = self.containers[node].root, self.containers[node].cache
        os.stat(root)
        try:
            with open_folder(root, f"{cache}/{STATE}") as folder:
                runs = os.listdir(folder)
        except OSError:
            return 0  # it has had no run yet
        found = 0
        for run in runs:
            with contextlib.suppress(OSError, ModuleError):  # it was removed: the edge has ended
                path = f"{cache}/{STATE}/{run}/{node.replace('/', '-')}.safetensors"
                found = max(found, round_of(root, path) + 1)
        return found

    def timings(self, folder: Path) -> None:
        """Copy what devices have timed since they were attached into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for node, text in self._timings().items():
            ours = text[self._timed_before.get(node, 0) :]
            (folder / f"{node.replace('/', '-')}.jsonl").write_bytes(ours)

    def _timings(self) -> dict[str, bytes]:
        found = {}
        for node, container in self.containers.items():
            if node_of(node)[0] == DEVICE:
                with contextlib.suppress(OSError):  # it times nothing, or is away
                    found[node] = read_file(container.root, TIMINGS)
        return found
