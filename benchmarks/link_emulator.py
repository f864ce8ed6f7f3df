"""The link emulator alone: rate, delay, loss, CPU; and messages between devices over its links.

Two devices and an edge in network namespaces. iperf3 sends UDP at twice the rate, and TCP; ping
measures the round trip and the loss; two processes play a D2D step over TLS, with the band
chosen so that the radio model gives the link the wanted rate.

Run as root: python -m benchmarks.link_emulator [OUT.png]; needs iperf3 and ping.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from clients.inbox import MIB, Limits
from clients.peers import PeerExchange
from hffm_flower.config import RunConfig
from hffm_flower.d2d import Parcel, PeerStep, Plan
from hffm_flower.ledger import LinkClass
from hffm_flower.modules import ModularUpdate, ModuleKey, shapes
from hffm_flower.pki import Party, Role
from hffm_flower.pki_folder import CA_CERT, CERT, KEY, create
from hffm_flower.rpc.channel import Credentials
from hffm_flower.rpc.codec import Allowed
from hffm_flower.rpc.tickets import issue
from hffm_flower.session.processes import Processes
from hffm_flower.testbed.hosts import NamespaceHosts
from hffm_flower.testbed.link import Quality
from hffm_flower.testbed.measure import Timed
from hffm_flower.testbed.namespaces import check_allowed
from hffm_flower.testbed.plot import draw_times
from hffm_flower.testbed.shaping import modelled_s
from hffm_flower.tree import plant
from hffm_flower.wireless.network import Network

MODULE: Final = ModuleKey.parse("adapter/big")
SECRET: Final = bytes(32)
PATIENCE_S: Final = 300.0
ONE, OTHER = "device/0", "device/1"
RATES_MBIT: Final = (1, 2, 5, 10, 20, 50)
SIZES_MB: Final = {1: (5,), 2: (5,), 5: (5, 10), 10: (5, 20), 20: (5, 20), 50: (5, 50)}
TIMES: Final = 2
DATAGRAM: Final = 1448
HEADERS: Final = 28
"""Of UDP and IPv4 [byte]."""


def network_of(d2d_khz: float) -> Network:
    """Two devices that hear each other, and an edge."""
    return plant(RunConfig.load(base={
        "tree.devices": 2, "tree.edges": 1, "d2d.plan": "relay",
        "radio.channel": "log-distance", "radio.d2d-bandwidth-khz": d2d_khz,
    }))  # fmt: skip


def band_khz(rate_bit_s: float) -> float:
    """The D2D band in which the radio model gives the link that rate."""
    low, high = 1e-3, 1e6
    for _ in range(60):
        middle = math.sqrt(low * high)
        slow = network_of(middle).block(1).rate_bit_s(ONE, OTHER) < rate_bit_s
        low, high = (middle, high) if slow else (low, middle)
    return high


class Bench:
    """The three namespaces and their emulator."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.hosts = NamespaceHosts(network, (), folder / "timings")
        self.processes = Processes(folder / "logs")

    def __enter__(self) -> Bench:
        self.processes.__enter__()
        self.hosts.__enter__()
        self.hosts.begin(self.processes)
        return self

    def __exit__(self, *error: Any) -> None:
        self.hosts.__exit__()
        self.processes.__exit__(*error)

    def between(self, there: Quality, back: Quality) -> None:
        """Let the link between the two devices be so."""
        self.hosts.control.change({(ONE, OTHER): there, (OTHER, ONE): back})

    def start(self, host: str, *argv: str) -> subprocess.Popen[str]:
        """A program in a namespace, which ends with it at the latest."""
        return subprocess.Popen(
            self.hosts.command(host, argv), stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL, env=self.processes.environment,
        )  # fmt: skip

    def said(self, host: str, *argv: str) -> str:
        """What it prints."""
        said, _ = self.start(host, *argv).communicate(timeout=PATIENCE_S)
        return said


def rates(bench: Bench) -> None:
    """Received by UDP, as whole packets, against what was set."""
    print(
        "\nrate\n| set [Mbit/s] | received [Mbit/s] | off | TCP goodput | % of a core per Mbit/s |"
    )
    print("|---|---|---|---|---|")
    for rate in RATES_MBIT:
        bench.between(Quality(1e6 * rate), Quality(1e6 * rate))
        before = bench.hosts.control.carried()
        udp = iperf(bench, "-u", "-b", f"{2 * rate}M", "-l", str(DATAGRAM), "-t", "6")
        # what is received in whole seconds but the first and the last
        whole = [each["sum"]["bits_per_second"] for each in udp["intervals"]]
        received = float(np.mean(whole[1:-1])) * (DATAGRAM + HEADERS) / DATAGRAM
        after = bench.hosts.control.carried()
        tcp = float(np.mean([
            each["sum"]["bits_per_second"] for each in iperf(bench, "-t", "6")["intervals"][1:-1]
        ]))  # fmt: skip
        cpu = 1e8 * (after.cpu_s - before.cpu_s) / (after.bits - before.bits)
        print(f"| {rate} | {received / 1e6:.3f} | {received / rate / 1e6 - 1:+.1%} | "
              f"{tcp / rate / 1e6:.1%} | {cpu:.2f} |")  # fmt: skip


def iperf(bench: Bench, *words: str) -> dict[str, Any]:
    """What the receiving end of iperf3 says, device 1; device 0 sends."""
    server = bench.start("device-1", "iperf3", "-s", "-1", "-J")
    time.sleep(1.0)  # to ask whether it listens would use up its one connection
    bench.said("device-0", "iperf3", "-c", bench.hosts.ip("device-1"), *words)
    result: dict[str, Any] = json.loads(server.communicate(timeout=PATIENCE_S)[0])
    if "error" in result:
        raise SystemExit(f"iperf3: {result['error']}")
    return result


def delays(bench: Bench) -> None:
    """Half of ping's round trip against the delay each way."""
    print("\ndelay\n| set [ms] | half a round trip, mean [ms] | median | off |\n|---|---|---|---|")
    for delay_ms in (0, 5, 20, 100):
        quality = Quality(100e6, delay_ms / 1e3)
        bench.between(quality, quality)
        said = bench.said("device-0", "ping", "-c", "200", "-i", "0.02",
                          bench.hosts.ip("device-1"))  # fmt: skip
        halves = [float(ms) / 2 for ms in re.findall(r"time=([\d.]+)", said)]
        mean, middle = float(np.mean(halves)), float(np.median(halves))
        print(f"| {delay_ms} | {mean:.2f} | {middle:.2f} | {mean - delay_ms:+.2f} |")


def losses(bench: Bench) -> None:
    """Lost by ping against the binomial interval (Clopper-Pearson, 95 %)."""
    from scipy.stats import binomtest

    print("\nloss\n| set | lost | of | share | 95 % interval | inside |\n|---|---|---|---|---|---|")
    for share in (0.01, 0.05, 0.2):
        bench.between(Quality(100e6, loss=share), Quality(100e6))
        said = bench.said("device-0", "ping", "-q", "-c", "4000", "-i", "0.002",
                          bench.hosts.ip("device-1"))  # fmt: skip
        counted = re.search(r"(\d+) packets transmitted, (\d+) received", said)
        if counted is None:
            raise SystemExit(f"ping: {said}")
        sent, came = map(int, counted.groups())
        near = binomtest(sent - came, sent).proportion_ci(0.95)
        print(f"| {share:.0%} | {sent - came} | {sent} | {(sent - came) / sent:.2%} | "
              f"{near.low:.2%} to {near.high:.2%} | "
              f"{'yes' if near.low <= share <= near.high else 'no'} |")  # fmt: skip


def messages(folder: Path) -> list[Timed]:
    """A step of D2D over links of several rates; modelled beside measured."""
    print("\nmessages\n| link [Mbit/s] | MB | modelled [s] | measured [s] | ratio |")
    print("|---|---|---|---|---|")
    found = []
    for rate in RATES_MBIT:
        network = network_of(band_khz(1e6 * rate))
        with Bench(network, folder / str(rate)) as bench:
            names = ("device-0", "device-1")
            parties = [Party(n, Role.DEVICE, (bench.hosts.ip(n),)) for n in names]
            create(folder / str(rate) / "pki", parties, days=1)
            for size in SIZES_MB[rate]:
                for _ in range(TIMES):
                    found.append(message(bench, network, folder / str(rate) / "pki", size))
                    one = found[-1]
                    print(f"| {rate} | {one.bytes / 1e6:.1f} | {one.modelled_s:.2f} | "
                          f"{one.measured_s:.2f} | {one.ratio:.3f} |", flush=True)  # fmt: skip
    return found


def message(bench: Bench, network: Network, pki: Path, megabytes: int) -> Timed:
    """One message from device 0 to device 1, each in its own process."""
    addresses = [bench.hosts.free(name) for name in ("device-0", "device-1")]
    ends = [
        bench.start(f"device-{me}", sys.executable, "-m", "benchmarks.link_emulator", "end",
                    str(me), str(pki), str(megabytes), *addresses)
        for me in (1, 0)
    ]  # fmt: skip
    told = [end.communicate(timeout=PATIENCE_S)[0] for end in ends]
    size, began_s, ended_s = json.loads(told[1])
    model_s = modelled_s(network, (ONE, OTHER), 1, size)
    return Timed(1, ONE, OTHER, LinkClass.D2D, size, model_s, ended_s - began_s)


def end(me: int, pki: Path, megabytes: int, addresses: tuple[str, str]) -> None:
    """One of the two devices; the sender prints size and times."""
    own = pki / f"device-{me}"
    trusted = Credentials.read(own / CA_CERT, own / CERT, own / KEY)
    size = 2 * megabytes * MIB
    floats = np.random.default_rng(0).standard_normal(megabytes * 250_000, dtype=np.float32)
    update = ModularUpdate.of({MODULE: {"w": floats}}, 1.0)
    plan = Plan("relay", (), (PeerStep({0: {1: {MODULE: 1.0}}}),), {1: (MODULE,)}, {})
    limits = Limits(message_bytes=size, buffered_bytes=size)
    tickets = issue(SECRET, dict(enumerate(addresses)), run=1, t=1)
    with PeerExchange(me, addresses[me], credentials=trusted, limits=limits) as peers:
        peers.open(tickets[me], Allowed(shapes(update.state), {0: 1.0, 1: 1.0}))
        if me == 0:
            time.sleep(3.0)  # let the receiver be ready
        held = [Parcel.of(update, 0)] if me == 0 else []
        came = peers.play(plan, 0, held, deadline_s=PATIENCE_S)
        if me == 1 and not came:
            raise SystemExit("the message did not arrive")
        for sent in peers.sent:
            print(json.dumps([sent.letter_bytes, sent.began_s, sent.ended_s]))


def main() -> None:
    """Print all tables; draw the messages if asked to."""
    check_allowed()
    with tempfile.TemporaryDirectory() as scratch:
        parts: list[Callable[[Bench], None]] = [delays, losses, rates]
        with Bench(network_of(1000.0), Path(scratch) / "alone") as bench:
            for part in parts:
                part(bench)
        found = messages(Path(scratch))
    if len(sys.argv) > 1:
        title = "one message between two devices, links of 1 to 50 Mbit/s"
        draw_times(found, Path(sys.argv[1]), title=title)


if __name__ == "__main__":
    if sys.argv[1:2] == ["end"]:
        end(int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), (sys.argv[5], sys.argv[6]))
    else:
        main()
