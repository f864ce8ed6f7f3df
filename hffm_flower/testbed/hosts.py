"""The machines of a tree as network namespaces of this one."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from hffm_flower.errors import ConfigError, HffmError
from hffm_flower.ledger import CLOUD, DEVICE, EDGE
from hffm_flower.session.hosts import Begun
from hffm_flower.session.processes import Processes, Program, listening
from hffm_flower.testbed.air import Air
from hffm_flower.testbed.control import Carried, Control, command
from hffm_flower.testbed.namespaces import INTERFACE, MTU, Namespace, tcp_of_routes
from hffm_flower.testbed.scenario import Scenario
from hffm_flower.wireless.network import Network

log = logging.getLogger(__name__)

FIRST_PORT: Final = 8000
EMULATOR: Final = "emulator"
SOCKET: Final = "emulator.sock"
LONGEST_TMP: Final = 107 - len(f"/hffm-tree-12345678/{SOCKET}")
"""Of the folder of temporary files; a socket's name may have 107 letters [byte]."""
A_NET: Final = 250
"""Nodes in one 10.77.N.0/24; all of them are in 10.77.0.0/16."""


def nodes_of(network: Network) -> list[str]:
    """Every node of a tree, as in the ledger."""
    topology = network.topology
    return [
        CLOUD, *(f"{EDGE}/{e}" for e in range(topology.edges)),
        *(f"{DEVICE}/{k}" for k in range(topology.devices)),
    ]  # fmt: skip


def check_scratch() -> None:
    """See whether the emulator's socket can have a name where temporary files are.

    Raises:
        ConfigError: The folder's name is too long for that.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > LONGEST_TMP:
        raise ConfigError(
            f"TMPDIR: {folder!r} has {len(os.fsencode(folder))} letters; sockets below it can have "
            f"no names; allowed: up to {LONGEST_TMP}"
        )


def start_emulator(processes: Processes, seed: int) -> Control:
    """Start the emulator among the programs of a tree."""
    path = processes.scratch / SOCKET
    processes.start(Program(EMULATOR, command(path, seed), restarts=0, last=True))
    return Control(path)


def check_emulator(processes: Processes) -> None:
    """See whether it is at work.

    Raises:
        HffmError: It is gone, so that nothing arrives any more.
    """
    if not processes.running(EMULATOR):
        raise HffmError(f"the link emulator is gone: {processes.loss(EMULATOR)}")


class NamespaceHosts:
    """Hosts, each a namespace with one address, joined by the link emulator; a context manager.

    Args:
        network: Who is there, and the radio model.
        scenario: Faults.
        timings: Folder into which devices write when their messages went.
    """

    def __init__(self, network: Network, scenario: Scenario, timings: Path) -> None:
        self._network, self._scenario, self._timings = network, scenario, timings
        self._nodes = nodes_of(network)
        self._addresses = {
            node: f"10.77.{place // A_NET}.{place % A_NET + 1}"
            for place, node in enumerate(self._nodes)
        }
        self._ports: defaultdict[str, itertools.count[int]] = defaultdict(
            lambda: itertools.count(FIRST_PORT)
        )
        self._stack = contextlib.ExitStack()
        self._spaces: dict[str, Namespace] = {}
        self._processes: Processes | None = None
        self._control: Control | None = None
        self.air: Air | None = None
        self.carried: Carried | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as made:
            for node in self._nodes:
                self._spaces[node] = made.enter_context(Namespace())
            self._stack = made.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def timings(self) -> Path:
        return self._timings

    @property
    def control(self) -> Control:
        """The emulator's.

        Raises:
            HffmError: It has not been started.
        """
        if self._control is None:
            raise HffmError("the link emulator has not been started")
        return self._control

    def ip(self, host: str) -> str:
        return self._addresses[_node(host)]

    def free(self, host: str, *, inside: bool = False) -> str:
        return f"{'127.0.0.1' if inside else self.ip(host)}:{next(self._ports[host])}"

    def command(self, host: str, argv: tuple[str, ...]) -> tuple[str, ...]:
        return (*self._spaces[_node(host)].prefix, *argv)

    def listening(self, host: str, address: str) -> bool:
        with self._spaces[_node(host)].inside():
            return listening(address)

    def begin(self, processes: Processes) -> None:
        """Start the emulator and hand it a device of every namespace."""
        self._timings.mkdir(parents=True, exist_ok=True)
        self._processes = processes
        self._control = self._stack.enter_context(start_emulator(processes, self._network.seed))
        tcp = tcp_of_routes()
        for node, space in self._spaces.items():
            address, device = self._addresses[node], space.open_tun()
            try:
                space.ip([
                    "link set lo up", f"addr add {address}/16 dev {INTERFACE}",
                    f"link set {INTERFACE} up mtu {MTU}",
                    f"route change 10.77.0.0/16 dev {INTERFACE} proto kernel scope link "
                    f"src {address} {tcp}",
                ])  # fmt: skip
                self._control.attach(node, [address], device)
            finally:
                os.close(device)
        self.air = Air(self._network, self._scenario, self._control)

    def tick(self, begun: Callable[[], Begun]) -> None:
        """Follow the edge rounds.

        Raises:
            HffmError: The emulator is gone, so that nothing arrives any more.
        """
        if self._processes is not None:
            check_emulator(self._processes)
        if self.air is not None and self._control is not None:
            self.air.follow(begun())
            self.carried = self._control.carried()


def _node(host: str) -> str:
    """``device-3`` as the ledger says it."""
    return host.replace("-", "/")
