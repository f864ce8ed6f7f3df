"""The process that carries packets between nodes, as the links between them say.

``python -m hffm_flower.testbed.emulator SOCKET SEED``: takes TUN devices and orders over a
socket, and ends when that closes. It needs no rights of its own: whoever opened the devices
hands them over. Between nodes that no link joins, packets go by edges and cloud, never by devices.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import math
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from hffm_flower.errors import ConfigError
from hffm_flower.ledger import DEVICE, node_of
from hffm_flower.seeding import generator
from hffm_flower.testbed.link import Pipe, Quality

BATCH: Final = 32
"""Packets read from one device before the others have their turn."""
LONGEST_WAIT_S: Final = 1.0
LARGEST_ORDER: Final = 2**17
"""Of an order or an answer [byte]."""
PACKET_BYTES: Final = 2**16
IPV4: Final = 4


@dataclass(slots=True)
class _Lane:
    """A direction of a link, its far end, and when it is looked at next."""

    pipe: Pipe
    dst: str
    due_s: float = math.inf


@dataclass(slots=True)
class Switch:
    """Nodes and the links between them; what arrives is handed to `write`.

    Args:
        seed: Of losses and jitter.
        devices: Node -> file descriptor of its TUN device.
    """

    seed: int
    devices: dict[str, int] = field(default_factory=dict)
    _nodes: dict[bytes, str] = field(default_factory=dict)
    _lanes: dict[tuple[str, str], _Lane] = field(default_factory=dict)
    _next: dict[tuple[str, str], _Lane | None] = field(default_factory=dict)
    _heap: list[tuple[float, tuple[str, str]]] = field(default_factory=list)

    def attach(self, node: str, addresses: Iterable[str], device: int) -> None:
        """Carry packets of a node; one that was attached before is let go."""
        self.detach(node)
        self.devices[node] = device
        self._nodes |= {socket.inet_aton(address): node for address in addresses}

    def detach(self, node: str) -> None:
        """Carry packets of a node no longer."""
        if node in self.devices:
            os.close(self.devices.pop(node))
            self._nodes = {a: n for a, n in self._nodes.items() if n != node}

    def change(self, now_s: float, src: str, dst: str, quality: Quality) -> None:
        """Let the link from one node to another be so; a new one is made."""
        lane = self._lanes.get((src, dst))
        if lane is None:
            draws = generator(self.seed, "testbed", src, dst)
            self._lanes[src, dst] = _Lane(Pipe(quality, draws), dst)
            self._next.clear()
            return
        lane.pipe.change(now_s, quality)
        self._schedule((src, dst), lane)

    def carry(self, now_s: float, at: str, packet: bytes) -> None:
        """Take a packet that is at a node one link further, if there is a way."""
        node = self._nodes.get(packet[16:20])
        if node is None or packet[0] >> 4 != IPV4:
            return
        if node == at:
            device = self.devices.get(at)
            if device is not None:
                with contextlib.suppress(OSError):  # its interface is down, or its node gone
                    os.write(device, packet)
            return
        if (at, node) not in self._next:
            self._next[at, node] = self._way(at, node)
        lane = self._next[at, node]
        if lane is not None:
            lane.pipe.push(now_s, packet)
            self._schedule((at, lane.dst), lane)

    def deliver(self, now_s: float) -> float:
        """Hand on all that has arrived by now; when to come again [s]."""
        heap = self._heap
        while heap and heap[0][0] <= now_s:
            due_s, ends = heapq.heappop(heap)
            lane = self._lanes[ends]
            if due_s != lane.due_s:
                continue  # it was brought forward meanwhile
            lane.due_s = math.inf
            for came_s, packet in lane.pipe.pull(now_s):
                self.carry(came_s, lane.dst, packet)
            self._schedule(ends, lane)
        return heap[0][0] if heap else math.inf

    def counters(self) -> list[tuple[str, str, dict[str, int]]]:
        """Of every direction that had packets."""
        lanes = self._lanes.items()
        return [(*ends, asdict(c)) for ends, lane in lanes if (c := lane.pipe.counters).packets]

    def _schedule(self, ends: tuple[str, str], lane: _Lane) -> None:
        due_s = lane.pipe.due_s
        if due_s < lane.due_s:
            lane.due_s = due_s
            heapq.heappush(self._heap, (due_s, ends))

    def _way(self, src: str, dst: str) -> _Lane | None:
        """The first link of the way with the fewest links, by nodes that are no devices."""
        first: dict[str, tuple[str, str]] = {}
        queue = deque([src])
        while queue:
            at = queue.popleft()
            for a, b in self._lanes:
                if a == at and b not in first and b != src:
                    first[b] = first.get(at, (src, b))
                    if node_of(b)[0] != DEVICE:
                        queue.append(b)
        return self._lanes[first[dst]] if dst in first else None


class Emulator:
    """A switch that is driven by a socket and the clock."""

    def __init__(self, control: socket.socket, seed: int) -> None:
        self.switch, self._control = Switch(seed), control
        self._packets = 0
        self._cpu_s = time.process_time()

    def run(self) -> None:
        """Carry packets until the other end of the socket is gone."""
        now, switch, control = time.monotonic, self.switch, self._control.fileno()
        sources = self._sources()
        while True:
            wait_s = min(switch.deliver(now()) - now(), LONGEST_WAIT_S)
            ready, _, _ = select.select([control, *sources], [], [], max(0.0, wait_s))
            for source in ready:
                if source != control:
                    if not self._read(source, sources[source]):
                        sources = self._sources()
                        break
                    continue
                if not self._obey():
                    return
                sources = self._sources()
                break

    def _sources(self) -> dict[int, str]:
        return {device: node for node, device in self.switch.devices.items()}

    def _read(self, device: int, node: str) -> bool:
        """Carry what has come from a node; False: its device is gone."""
        now_s = time.monotonic()
        for _ in range(BATCH):
            try:
                packet = os.read(device, PACKET_BYTES)
            except BlockingIOError:
                return True
            except OSError:  # its interface is down, or its node gone
                self.switch.detach(node)
                return False
            self._packets += 1
            self.switch.carry(now_s, node, packet)
        return True

    def _obey(self) -> bool:
        """Carry out one order and answer it; False: the other end is gone."""
        data, handed, _, _ = socket.recv_fds(self._control, LARGEST_ORDER, 1)
        if not data:
            return False
        try:
            answer = self._answer(json.loads(data), handed)
        except ConfigError as error:
            answer = {"error": str(error)}
        self._control.send(json.dumps(answer).encode())
        return True

    def _answer(self, order: Mapping[str, Any], handed: list[int]) -> dict[str, object]:
        switch = self.switch
        if "attach" in order:
            os.set_blocking(handed[0], False)
            switch.attach(order["attach"], order["addresses"], handed[0])
        for src, dst, words in order.get("links", ()):
            switch.change(time.monotonic(), src, dst, Quality(**words))
        if "detach" in order:
            switch.detach(order["detach"])
        if "counters" in order:
            rows = switch.counters()
            at = int(order["counters"])
            return {"cpu_s": time.process_time() - self._cpu_s, "packets": self._packets,
                    "rows": rows[at : at + int(order["most"])]}  # fmt: skip
        return {}


def main(path: str, seed: str) -> None:
    """Listen at ``path`` for the one that gives the orders, and serve it."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the socket says when
    with contextlib.suppress(OSError):  # not allowed: packets are a little later
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(path)
        door.listen(1)
        control, _ = door.accept()
        with control:
            Emulator(control, int(seed)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
