"""Real namespaces joined by the emulator: rates, delays and losses of sockets; nothing stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hffm_flower.errors import ConfigError, HffmError
from hffm_flower.testbed import namespaces as module
from hffm_flower.testbed.hosts import EMULATOR
from hffm_flower.testbed.link import Quality
from tests.support.bench import Bench, namespaces, skip_unless_allowed
from tests.support.deployment import ROOT

SINK = """
import socket
with socket.create_server(("", 7000)) as door:
    print("up", flush=True)
    while True:
        peer, _ = door.accept()
        with peer:
            while peer.recv(65536):
                pass
            peer.sendall(b"thanks")
"""
SOURCE = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 7000), timeout=30) as peer:
    began = time.monotonic()
    peer.sendall(bytes(int(sys.argv[2])))
    peer.shutdown(socket.SHUT_WR)
    assert peer.recv(100) == b"thanks"
    print(time.monotonic() - began)
"""
UDP = """
import socket, sys, time
ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ours.settimeout(0.5)
ours.connect((sys.argv[1], 7001))
for number in range(400):
    ours.send(number.to_bytes(2, "big"))
    time.sleep(0.001)
"""
COUNT = """
import socket
ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ours.bind(("", 7001))
print("up", flush=True)
ours.settimeout(30)
count = 0
try:
    while True:
        ours.recv(100)
        count += 1
        ours.settimeout(2)
except TimeoutError:
    print(count)
"""
PARENT = """
import signal, sys, time
from pathlib import Path
from hffm_flower.session.processes import Program
from tests.support.bench import Bench
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGTERM, interrupt)
signal.signal(signal.SIGINT, interrupt)
with Bench(Path(sys.argv[1])) as bench:
    sleep = (sys.executable, "-c", "import time; time.sleep(600)")
    bench.processes.start(Program("there", bench.hosts.command("device-1", sleep)))
    print(bench.processes.scratch, flush=True)
    if sys.argv[2] == "stay":
        time.sleep(600)
"""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    skip_unless_allowed()
    with Bench(tmp_path) as made:
        yield made


def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def spaces_of(pid: int) -> set[str]:
    """Network namespaces of a process's children."""
    children = psutil.Process(pid).children()
    return {os.readlink(f"/proc/{child.pid}/ns/net") for child in children}


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def in_background(bench: Bench, host: str, code: str) -> subprocess.Popen[str]:
    """A Python program in a namespace that has said that it is up."""
    started = subprocess.Popen(
        bench.hosts.command(host, (sys.executable, "-c", code)), stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "up\n"
    return started


def test_tcp_fills_the_link_and_no_more(bench: Bench) -> None:
    bench.join("device/0", "device/1", Quality(8e6, 0.005))
    address = bench.hosts.ip("device-1")
    sink = in_background(bench, "device-1", SINK)
    try:
        assert bench.hosts.listening("device-0", f"{address}:7000")
        assert not bench.hosts.listening("device-0", f"{address}:7999")
        before = bench.hosts.control.carried()
        took_s = float(bench.said("device-0", sys.executable, "-c", SOURCE, address, "1000000"))
    finally:
        sink.kill()
        sink.communicate()
    assert took_s > 1.0  # a million bytes at 8 Mbit/s, and headers
    after = bench.hosts.control.carried()
    assert after.bits - before.bits > 8e6
    there = after.links["device/0", "device/1"]
    assert there.delivered_bytes > 1e6
    assert there.lost == 0


def test_losses_and_a_cut(bench: Bench) -> None:
    bench.join("device/0", "device/1", Quality(loss=0.5))
    address = bench.hosts.ip("device-1")
    counting = in_background(bench, "device-1", COUNT)
    assert bench.said("device-0", sys.executable, "-c", UDP, address) == ""
    came = int(counting.communicate(timeout=60)[0])
    assert 130 < came < 270  # 200 of 400, and seven sigma
    bench.join("device/0", "device/1", Quality(cut=True))
    counting = in_background(bench, "device-1", COUNT.replace("settimeout(30)", "settimeout(2)"))
    bench.said("device-0", sys.executable, "-c", UDP, address)
    assert int(counting.communicate(timeout=60)[0]) == 0
    counted = bench.hosts.control.carried().links["device/0", "device/1"]
    assert counted.lost == 400 - came
    assert counted.cut == 400


def test_an_emulator_that_dies_is_told_of(bench: Bench) -> None:
    psutil.Process(bench.processes.pid(EMULATOR)).kill()
    until(lambda: not bench.processes.running(EMULATOR))
    with pytest.raises(HffmError, match="the link emulator is gone"):
        bench.hosts.tick(dict)


@pytest.mark.parametrize("number", [0, signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_however_it_ends(tmp_path: Path, number: int) -> None:
    skip_unless_allowed()
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), "stay" if number else "go"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        scratch = Path(parent.stdout.readline().strip())
        ours, spaces = [], set()
        if number:
            until(lambda: len(spaces_of(parent.pid)) == 2)  # the device's, and this one
            ours, spaces = psutil.Process(parent.pid).children(), spaces_of(parent.pid)
            parent.send_signal(number)
        parent.wait(timeout=60)
    until(lambda: not scratch.exists() and all(map(gone, ours)))
    assert spaces & namespaces() <= {os.readlink("/proc/self/ns/net")}


def test_where_it_is_not_allowed_the_message_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "unshare: Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setenv("PATH", str(tmp_path))
        with pytest.raises(ConfigError, match="there is no program 'ip': install iproute2"):
            module.check_allowed()
    monkeypatch.setattr("hffm_flower.testbed.namespaces.shutil.which", lambda tool: tool)
    with monkeypatch.context() as patched:
        patched.setattr(module, "TUN", str(tmp_path / "tun"))
        with pytest.raises(ConfigError, match=r"there is no .*tun: load the module 'tun'"):
            module.check_allowed()
    monkeypatch.setattr(module, "TUN", str(tmp_path))
    monkeypatch.setattr(module, "_call", refused)
    with pytest.raises(ConfigError, match=r"may not: .*not permitted; be root, with CAP_NET_ADMIN"):
        module.check_allowed()


def test_another_ip_than_iproute2s_is_found_out_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    skip_unless_allowed()
    other = tmp_path / "ip"
    other.write_text('#!/bin/sh\necho "ip: unknown option -- batch" >&2\nexit 1\n')
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ConfigError, match=r"not that of iproute2.*unknown option -- batch"):
        module.check_allowed()
    other.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    with pytest.raises(ConfigError, match="ip link set lo up: no answer for"):
        module.check_allowed()
