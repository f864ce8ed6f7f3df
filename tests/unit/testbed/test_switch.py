"""The switch of the emulator: who hears whom, over which links."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from hffm_flower.testbed.emulator import Emulator, Switch
from hffm_flower.testbed.link import Quality

NODES = {"cloud": "10.0.0.1", "edge/0": "10.0.0.2", "device/0": "10.0.0.3", "device/1": "10.0.0.4",
         "device/2": "10.0.0.5"}  # fmt: skip


class World:
    """A switch whose devices are pipes."""

    def __init__(self) -> None:
        self.switch = Switch(1)
        self.ends: dict[str, int] = {}
        for node, address in NODES.items():
            self.ends[node], device = os.pipe()
            os.set_blocking(self.ends[node], False)
            self.switch.attach(node, [address], device)

    def join(self, a: str, b: str, quality: Quality) -> None:
        for ends in ((a, b), (b, a)):
            self.switch.change(0.0, *ends, quality)

    def send(self, now: float, src: str, dst: str, size: int = 1250) -> None:
        header = bytes([0x45]) + bytes(11)
        ends = socket.inet_aton(NODES[src]) + socket.inet_aton(NODES[dst])
        self.switch.carry(now, src, (header + ends).ljust(size, b"\0"))

    def got(self, node: str) -> int:
        try:
            return len(os.read(self.ends[node], 65536))
        except BlockingIOError:
            return 0

    def close(self) -> None:
        for node in NODES:
            os.close(self.ends[node])
            self.switch.detach(node)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    made.join("device/0", "edge/0", Quality(1e6))
    made.join("device/2", "edge/0", Quality(1e6))
    made.join("edge/0", "cloud", Quality(1e6, 0.1))
    made.join("device/0", "device/1", Quality(2e6))
    yield made
    made.close()


def test_a_packet_arrives_when_its_link_says(world: World) -> None:
    world.send(5.0, "device/0", "edge/0")
    assert world.switch.deliver(5.0) == pytest.approx(5.01)
    assert world.got("edge/0") == 0
    world.switch.deliver(5.011)
    assert world.got("edge/0") == 1250


def test_links_do_not_slow_each_other(world: World) -> None:
    world.send(5.0, "device/0", "edge/0")
    world.send(5.0, "device/0", "device/1")
    world.switch.deliver(5.0051)
    assert (world.got("device/1"), world.got("edge/0")) == (1250, 0)


def test_edges_hand_on_and_devices_do_not(world: World) -> None:
    world.send(5.0, "device/2", "cloud")
    world.switch.deliver(5.011)
    assert world.switch.deliver(5.119) < float("inf")
    world.switch.deliver(5.1201)
    assert world.got("cloud") == 1250
    world.send(6.0, "device/1", "edge/0")
    world.switch.deliver(9.0)
    assert world.got("edge/0") == 0


def test_a_change_brings_what_waits_forward(world: World) -> None:
    world.switch.change(0.0, "device/0", "edge/0", Quality(1000.0))
    world.send(5.0, "device/0", "edge/0")
    assert world.switch.deliver(5.0) == pytest.approx(15.0)
    world.switch.change(5.0, "device/0", "edge/0", Quality(1e6))
    assert world.switch.deliver(5.0) == pytest.approx(5.01)
    world.switch.deliver(5.0101)
    assert world.got("edge/0") == 1250
    assert world.switch.deliver(20.0) == float("inf")


def test_what_is_no_packet_for_anybody_is_left(world: World) -> None:
    world.switch.carry(5.0, "device/0", bytes(40))
    world.switch.carry(5.0, "device/0", b"\x60" + bytes(80))
    world.switch.detach("edge/0")
    world.send(5.0, "device/0", "edge/0")
    assert world.switch.deliver(9.0) == float("inf")


def test_counters_of_the_links_that_were_used(world: World) -> None:
    world.send(5.0, "device/0", "device/1", 500)
    world.switch.deliver(6.0)
    ((src, dst, counted),) = world.switch.counters()
    assert (src, dst, counted["packets"], counted["delivered_bytes"]) == (
        "device/0", "device/1", 1, 500,
    )  # fmt: skip


def test_a_device_that_goes_does_not_end_the_emulator() -> None:
    ours, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, control:
        ours.settimeout(10)
        emulator = Emulator(control, 1)
        gone = os.open("/", os.O_RDONLY)  # reading it is an error, as of a device that is gone
        emulator.switch.attach("device/0", ["10.0.0.3"], gone)
        serving = threading.Thread(target=emulator.run)
        serving.start()
        until = time.monotonic() + 10
        while emulator.switch.devices and time.monotonic() < until:
            time.sleep(0.01)
        ours.send(b"{}")
        assert ours.recv(65536) == b"{}"
        ours.shutdown(socket.SHUT_RDWR)
        serving.join(timeout=10)
    assert not serving.is_alive()
    assert emulator.switch.devices == {}
