"""A parcel of 100 MB from one device to another, beside a plain gRPC stream of the same bytes.

Both ends are processes of their own on loopback. The plain stream hands the same bytes to
`grpc.aio` by the same chunks, and throws them away at the other end: no checks, no tensors.

Run: python -m benchmarks.peers [MB] [TIMES]
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import grpc.aio
import numpy as np

from clients.inbox import MIB, Limits
from clients.peers import PeerExchange
from hffm_flower.d2d import Parcel, PeerStep, Plan
from hffm_flower.modules import ModularUpdate, ModuleKey, shapes
from hffm_flower.rpc.codec import CHUNK_BYTES, Allowed
from hffm_flower.rpc.tickets import issue

KEY, SMALL = map(ModuleKey.parse, ("adapter/big", "adapter/small"))
TENSORS: Final = 25
PATIENCE_S: Final = 60.0
SECRET: Final = bytes(32)
PLAIN: Final = "/plain/Push"


def parcel(megabytes: int, key: ModuleKey = KEY) -> ModularUpdate:
    """One module of that size, in some tensors."""
    draw = np.random.default_rng(0)
    each = megabytes * 10**6 // 4 // TENSORS
    state = {f"w{i}": draw.standard_normal(each, dtype=np.float32) for i in range(TENSORS)}
    return ModularUpdate.of({key: state}, 1.0)


def resident_mib(which: str) -> float:
    """VmRSS or VmHWM of this process."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(which):
            return int(line.split()[1]) / 1024
    return float("nan")


def forget_peak() -> None:
    """Let VmHWM begin anew."""
    Path("/proc/self/clear_refs").write_text("5", "utf-8")


class End:
    """One device of two, in its own process."""

    def __init__(self, me: int, megabytes: int) -> None:
        size = 2 * megabytes * MIB
        limits = Limits(message_bytes=size, buffered_bytes=size)
        self.me, self.update = me, parcel(megabytes if me else 0)
        self.small = parcel(megabytes // 3, SMALL)
        layout = shapes({**parcel(megabytes).state, **self.small.state})
        self.allowed = Allowed(layout, {0: 1.0, 1: 1.0})
        self.exchange = PeerExchange(me, "127.0.0.1:0", insecure=True, limits=limits)
        self.plan = Plan(
            "relay", (), (PeerStep({1: {0: {KEY: 1.0, SMALL: 1.0}}}),), {0: (KEY,)}, {}
        )

    def play(self, t: int, ports: dict[int, int]) -> tuple[float, float, bool]:
        """Seconds, growth of the process at most [MiB], and whether it came."""
        addresses = {i: f"127.0.0.1:{port}" for i, port in ports.items()}
        tickets = issue(SECRET, addresses, run=1, t=t)
        self.exchange.open(tickets[self.me], self.allowed)
        held = [Parcel.of(self.update if t else self.small, 1)] if self.me else []
        forget_peak()
        before, began = resident_mib("VmRSS"), time.perf_counter()
        now = self.exchange.play(self.plan, 0, held, deadline_s=PATIENCE_S)
        took = time.perf_counter() - began
        return took, resident_mib("VmHWM") - before, bool(now) is not bool(self.me)

    async def plain(self, port: int) -> float:
        """Seconds of a plain stream of the same bytes."""
        arrays = [a.view(np.uint8).data for a in self.update.state[KEY].values()]

        async def chunks() -> AsyncIterator[Any]:
            for array in arrays:
                for at in range(0, len(array), CHUNK_BYTES):
                    yield bytes(array[at : at + CHUNK_BYTES])

        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            began = time.perf_counter()
            size = int(await channel.stream_unary(PLAIN)(chunks()))
            if size != sum(map(len, arrays)):
                raise SystemExit("the plain stream did not arrive")
            return time.perf_counter() - began


async def plain_server(pipe: Connection) -> None:
    """Throws away what comes."""

    async def push(requests: AsyncIterator[bytes], context: Any) -> bytes:
        size = 0
        async for data in requests:
            size += len(data)
        return str(size).encode()

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 2 * CHUNK_BYTES)])
    handler: Any = grpc.stream_unary_rpc_method_handler(push)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("plain", {"Push": handler}),)
    )
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    while not pipe.poll():
        await asyncio.sleep(0.2)
    await server.stop(0)


def plain_end(pipe: Connection) -> None:
    """The process that the plain stream goes to."""
    asyncio.run(plain_server(pipe))


def peer_end(pipe: Connection, me: int, megabytes: int) -> None:
    """The process of one device; the sender also sends the plain stream."""
    end = End(me, megabytes)
    pipe.send(end.exchange.port)
    while (order := pipe.recv()) is not None:
        kind, *rest = order
        pipe.send(end.play(*rest) if kind == "play" else asyncio.run(end.plain(*rest)))
    end.exchange.close()


def main() -> None:
    """Print both, and how they compare."""
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    times = int(sys.argv[2]) if len(sys.argv) > 2 else 9
    spawn = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    devices = [partial(peer_end, me=me, megabytes=megabytes) for me in (0, 1)]
    ends: list[Callable[[Connection], None]] = [*devices, plain_end]
    for work in ends:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=work, args=(theirs,))
        process.start()
        pipes.append(ours)
        processes.append(process)
    to, sender, plain = pipes
    ports = {0: to.recv(), 1: sender.recv()}
    port = plain.recv()
    peers_s, plain_s, growth = [], [], [[0.0], [0.0]]
    for t in range(times + 2):  # one after the other, so that both meet the same load
        sender.send(("plain", port))
        beside = sender.recv()
        for pipe in (to, sender):
            pipe.send(("play", t, ports))
        (_, received, came), (took, sent, handed) = to.recv(), sender.recv()
        if not (came and handed):
            raise SystemExit("the parcel did not arrive")
        if t > 0:  # the very first opens connections, and gets what gRPC needs once
            growth[0].append(received)
            growth[1].append(sent)
        if t > 1:  # the one before gets memory that the others use again
            peers_s.append(took)
            plain_s.append(beside)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    rates = [megabytes / statistics.median(some) for some in (peers_s, plain_s)]
    ratio = statistics.median(b / a for a, b in zip(peers_s, plain_s, strict=True))
    over = max(growth[0]) - megabytes * 10**6 / MIB
    print(f"{megabytes} MB, {times} times, chunks of {CHUNK_BYTES // MIB} MiB; medians")
    print(f"plain stream {rates[1]:.0f} MB/s")
    print(f"peers        {rates[0]:.0f} MB/s; pair by pair {ratio:.2f} of the plain stream")
    print(f"the receiver grows by {max(growth[0]):.0f} MiB at most: the module and {over:.1f}")
    print(f"the sender grows by {max(growth[1]):.1f} MiB at most")


if __name__ == "__main__":
    main()
