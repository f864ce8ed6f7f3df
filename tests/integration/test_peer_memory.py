"""Many peers at once: memory stays within the bound that was set, and the bits are right."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

from clients.inbox import MIB, Limits
from clients.peers import PeerExchange
from hffm_flower.d2d import Parcel
from hffm_flower.d2d.parcel import join
from hffm_flower.modules import ModularUpdate, Tensor, shapes
from hffm_flower.records import to_bytes
from hffm_flower.rpc.codec import Allowed
from tests.support.memory import A
from tests.support.peers import peers, same_parcels, star, tickets
from tests.support.peers import update_of as small

ROOT = Path(__file__).parents[2]
PEERS = 64
LIMITS = Limits(message_bytes=5 * MIB, buffered_bytes=32 * MIB)

SENDERS = """
import asyncio, json, sys
from clients.outbox import Outbox
from hffm_flower.d2d import Parcel
from hffm_flower.rpc.codec import Envelope
from hffm_flower.rpc.letters import Writer
from hffm_flower.rpc.tickets import Ticket
from tests.integration.test_peer_memory import update_of
from tests.support.peers import FIRST

async def send(ticket, letter):
    outbox = Outbox(ticket, None)
    limit = asyncio.get_running_loop().time() + 60
    sent = await outbox.send(FIRST, 0, letter, limit=limit)
    await outbox.close()
    return sent.arrived

async def main():
    given = [Ticket.from_json(line) for line in json.load(sys.stdin)]
    writer = Writer()
    letters = []
    for ticket in given:
        parcel = Parcel.of(update_of(ticket.index), ticket.index)
        envelope = Envelope(ticket.run, ticket.t, FIRST, ticket.index, 0)
        letters.append(writer.letter(envelope, [parcel], ticket.seats[0].key))
    arrived = await asyncio.gather(*map(send, given, letters))
    print(sum(arrived))

asyncio.run(main())
"""


def update_of(device: int) -> ModularUpdate:
    """4 MB; the same tensors for all, other masses."""
    return ModularUpdate({A: {"w": array()}}, {A: 10.0 + device / 7})


@functools.cache
def array() -> Tensor:
    return np.random.default_rng(1).standard_normal(MIB).astype(np.float32)


def watch(sample: Callable[[], int], stop: threading.Event, peak: list[int]) -> None:
    while not stop.is_set():
        peak[0] = max(peak[0], sample())
        time.sleep(0.002)


def test_64_messages_of_4_mb_stay_within_a_bound_of_32_mb() -> None:
    own = update_of(0)
    plan = star(range(1, PEERS + 1), keys=(A,))
    allowed = Allowed(shapes(own.state), dict.fromkeys(range(PEERS + 1), 100.0))
    process = psutil.Process()
    with PeerExchange(0, "127.0.0.1:0", insecure=True, limits=LIMITS) as head:
        given = tickets({i: f"127.0.0.1:{head.port}" for i in range(PEERS + 1)})
        head.open(given[0], allowed)
        senders = subprocess.Popen(
            [sys.executable, "-c", SENDERS], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert senders.stdin is not None
        json.dump([given[i].to_json() for i in range(1, PEERS + 1)], senders.stdin)
        senders.stdin.close()
        stop, rss = threading.Event(), [0]
        before = process.memory_info().rss
        watching = threading.Thread(
            target=watch, args=(lambda: process.memory_info().rss, stop, rss)
        )
        watching.start()
        tracemalloc.start()
        held = head.play(plan, 0, [Parcel.of(own, 0)], deadline_s=60.0)
        python_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        stop.set()
        watching.join()
        assert senders.stdout is not None
        assert senders.stdout.read().strip() == str(PEERS)
        senders.stdout.close()
        assert senders.wait() == 0
        print(f"buffered {head.peak_bytes / MIB:.1f} MiB, python {python_peak / MIB:.1f} MiB, "
              f"process {(rss[0] - before) / MIB:.1f} MiB")  # fmt: skip
        assert 16 * MIB < head.peak_bytes <= LIMITS.buffered_bytes
    # beside the buffer: a message being decoded (twice), the sum, a product, the parcel in hand
    assert python_peak < LIMITS.buffered_bytes + 6 * LIMITS.message_bytes
    assert rss[0] - before < 192 * MIB  # with gRPC's own buffers; 256 MiB came
    parcels = [Parcel.of(ModularUpdate(own.state, update_of(i).mass), i) for i in range(PEERS + 1)]
    assert same_parcels(held, [join(parcels)])


def test_a_step_that_needs_the_last_of_the_line_does_not_lock_itself_out() -> None:
    """Room for two messages, eight peers, and the one that is needed first comes last."""
    size = len(to_bytes(small(1, (A,)).state))
    limits = Limits(message_bytes=2 * size, buffered_bytes=4 * size, stall_s=5.0)
    plan = star(range(1, 9), keys=(A,))
    updates = {i: small(i, (A,)) for i in range(9)}
    with peers(range(9), limits) as cluster, ThreadPoolExecutor(9) as pool:

        def one(i: int) -> tuple[Parcel, ...]:
            if i == 1:
                time.sleep(0.5)
            return cluster[i].play(plan, 0, [Parcel.of(updates[i], i)], deadline_s=20.0)

        held = list(pool.map(one, range(9)))
        assert cluster[0].peak_bytes <= limits.buffered_bytes
    assert same_parcels(held[0], [join([Parcel.of(updates[i], i) for i in range(9)])])
