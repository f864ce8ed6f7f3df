"""Peers on real sockets do what `d2d.play` does, to the bit, also when some fail."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import grpc.aio
import pytest

from clients.inbox import Limits
from clients.peers import PeerExchange
from hffm_flower.d2d import (
    EDGE,
    Delivery,
    Fault,
    Parcel,
    PeerStep,
    Plan,
    PlanOptions,
    make_plan,
    play,
)  # fmt: skip
from hffm_flower.errors import ConfigError, PeerError
from hffm_flower.modules import ModuleKey, digest
from hffm_flower.rpc import exchange_pb2 as pb
from hffm_flower.rpc.channel import open_channel
from hffm_flower.rpc.codec import Turn, Verdict
from hffm_flower.rpc.exchange_pb2_grpc import PeerExchangeStub
from tests.support.memory import A, H, P
from tests.support.peers import (
    FIRST,
    RUN,
    chunks_of,
    letter,
    peers,
    push,
    ring,
    same_parcels,
    star,
    state_of,
    tickets,
    update_of,
)  # fmt: skip

HOLDS: dict[int, tuple[ModuleKey, ...]] = {
    0: (A, H), 1: (A, P), 2: (A, H, P), 3: (A,), 4: (A, H), 5: (A, P),
}  # fmt: skip
PLANS = {
    "relay": ("relay", PlanOptions()),
    "relay-energy": ("relay", PlanOptions(head="energy")),
    "relay-forwarding": ("relay", PlanOptions(summing=False)),
    "gossip": ("gossip", PlanOptions(accuracy=0.05)),
    "cooperative": ("cooperative", PlanOptions(accuracy=0.2)),
}


def plan_of(name: str) -> Plan:
    kind, options = PLANS[name]
    return make_plan(kind, ring(6, HOLDS), options)


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_over_grpc_is_the_plan_in_process_to_the_bit(name: str) -> None:
    plan = plan_of(name)
    updates = {i: update_of(i, keys) for i, keys in HOLDS.items()}
    with peers(HOLDS) as cluster:
        held = cluster.play(plan, updates)
        sent = [s for e in cluster.exchanges.values() for s in e.sent]
    want = play(updates, plan)
    assert [i for i in HOLDS if not same_parcels(held[i], want.held[i])] == []
    assert {(s.turn.step, s.src, s.dst) for s in sent} == {
        (s.step, s.src, s.dst) for s in want.sent
    }
    assert all(s.arrived and s.turn.phase == pb.UP for s in sent)


def test_the_plan_is_played_again_behind_every_part_of_training() -> None:
    plan = plan_of("cooperative")
    parts = [{i: update_of(i + n, keys) for i, keys in HOLDS.items()} for n in (0, 10)]
    with peers(HOLDS) as cluster:
        held = [cluster.play(plan, part, segment=n) for n, part in enumerate(parts)]
        segments = {s.turn.segment for e in cluster.exchanges.values() for s in e.sent}
    want = [play(part, plan).held for part in parts]
    assert [same_parcels(held[n][i], want[n][i]) for n in (0, 1) for i in HOLDS] == [True] * 12
    assert segments == {0, 1}


def test_a_slow_device_is_not_waited_for_twice_and_stays_live() -> None:
    step = PeerStep({i: {j: {A: 0.25} for j in range(3) if j != i} for i in range(3)})
    plan = Plan("gossip", (), (step,) * 4, {0: (A,)}, {A: ((0, 1, 2),)})
    updates = {i: update_of(i, (A,)) for i in range(3)}
    with peers(range(3)) as cluster:
        late = star([])
        began = time.monotonic()
        held = cluster.play(plan, {i: updates[i] for i in (0, 1)}, deadline_s=8.0)
        took_s = time.monotonic() - began
        own = cluster[2].play(late, 0, [Parcel.of(updates[2], 2)], deadline_s=0.5)
        verdict = push(
            cluster.reactor,
            cluster.addresses[0],
            chunks_of(
                letter(cluster.tickets[2], 0, [Parcel.of(updates[2], 2)], turn=Turn(pb.UP, 0, 3))
            ),
        )
        missed = cluster[0].missed
    want = play(updates, plan, faults={2: Fault.SLOW})
    assert all(same_parcels(held[i], want.held[i]) for i in (0, 1))
    assert same_parcels(own, [Parcel.of(updates[2], 2)])
    assert verdict == Verdict.LATE
    assert len(missed) == 4
    assert took_s < 8.0


def test_a_device_that_dies_in_mid_stream_takes_only_its_own_along() -> None:
    big = update_of(1)
    plan = star([1, 2])
    with peers(range(3), Limits(stall_s=0.3)) as cluster:
        chunks = chunks_of(letter(cluster.tickets[1], 0, [Parcel.of(big, 1)]))
        half = pb.Chunk(data=chunks[1].data[: len(chunks[1].data) // 2])
        dying = cluster.reactor.start(_push_and_die(cluster.addresses[0], [chunks[0], half]))
        held = cluster.play(plan, {i: update_of(i) for i in (0, 2)}, deadline_s=2.5)
        dying.result()
    want = play({i: update_of(i) for i in range(3)}, plan, faults={1: Fault.DEAD_DURING})
    assert all(same_parcels(held[i], want.held[i]) for i in (0, 2))


async def _push_and_die(address: str, chunks: list[pb.Chunk]) -> None:
    async def stop() -> AsyncIterator[pb.Chunk]:
        for chunk in chunks:
            yield chunk
        await asyncio.sleep(60)

    channel = open_channel(address, None)
    call = PeerExchangeStub(channel).Push(stop(), timeout=60)
    await asyncio.sleep(0.3)
    await channel.close()
    with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
        await call  # or it was told that the message is there already


def test_a_stream_that_breaks_may_be_sent_again() -> None:
    plan = star([1])
    updates = {i: update_of(i) for i in (0, 1)}
    with peers(range(2), Limits(stall_s=1.0)) as cluster:
        chunks = chunks_of(letter(cluster.tickets[1], 0, [Parcel.of(updates[1], 1)]))
        dying = cluster.reactor.start(_push_and_die(cluster.addresses[0], chunks[:1]))
        held = cluster.play(plan, updates, deadline_s=10.0)
        dying.result()
    assert same_parcels(held[0], play(updates, plan).held[0])


@pytest.mark.parametrize("before", [None, RUN - 1], ids=["no round yet", "the run before"])
def test_who_is_early_waits_and_sends_once(before: int | None) -> None:
    plan = star([1])
    updates = {i: update_of(i) for i in (0, 1)}
    with peers(range(2)) as cluster:
        late = PeerExchange(0, "127.0.0.1:0", insecure=True, reactor=cluster.reactor)
        addresses = cluster.addresses | {0: f"127.0.0.1:{late.port}"}
        ours = tickets(addresses)
        if before is not None:
            late.open(tickets(addresses, run=before)[0], cluster.allowed)
        cluster[1].open(ours[1], cluster.allowed)
        with late, ThreadPoolExecutor(1) as pool:
            own = [Parcel.of(updates[1], 1)]
            leaf = pool.submit(cluster[1].play, plan, 0, own, deadline_s=20.0)
            time.sleep(0.5)
            late.open(ours[0], cluster.allowed)
            held = late.play(plan, 0, [Parcel.of(updates[0], 0)], deadline_s=20.0)
            assert leaf.result() == ()
        (sent,) = cluster[1].sent
    assert same_parcels(held, play(updates, plan).held[0])
    assert (sent.tries, sent.arrived) == (1, True)


def test_a_server_that_restarts_is_reached_by_a_second_try() -> None:
    plan = star([1])
    updates = {i: update_of(i) for i in (0, 1)}
    with peers(range(2)) as cluster:
        port = cluster[0].port
        cluster[0].close()
        with ThreadPoolExecutor(1) as pool:
            leaf = pool.submit(
                cluster[1].play, plan, 0, [Parcel.of(updates[1], 1)], deadline_s=20.0
            )
            time.sleep(0.5)  # the sender tries while nobody listens
            again = PeerExchange(0, f"127.0.0.1:{port}", insecure=True, reactor=cluster.reactor)
            cluster.exchanges[0] = again
            again.open(cluster.tickets[0], cluster.allowed)
            held = again.play(plan, 0, [Parcel.of(updates[0], 0)], deadline_s=20.0)
            assert leaf.result() == ()
        (sent,) = cluster[1].sent
    assert same_parcels(held, play(updates, plan).held[0])
    assert sent.tries > 1
    assert sent.arrived


def test_what_is_sent_is_reported_in_bytes() -> None:
    plan = star([1])
    updates = {i: update_of(i) for i in (0, 1)}
    with peers(range(2)) as cluster:
        message = letter(cluster.tickets[1], 0, [Parcel.of(updates[1], 1)])
        cluster.play(plan, updates)
        (sent,) = cluster[1].sent
    assert (sent.turn, sent.src, sent.dst, sent.tries) == (FIRST, 1, 0, 1)
    assert sent.payload_bytes == message.payload_bytes
    assert sent.header_bytes == len(message.header) + len(message.seal)
    assert sent.modules == (A, H, P)


DOWN = (
    Delivery(EDGE, 0, (A, H), 0), Delivery(0, 1, (A, H), 1), Delivery(1, 2, (A,), 2),
)  # fmt: skip


def test_modules_are_handed_on_before_training() -> None:
    plan = dataclasses.replace(star([]), down=DOWN)
    edge = state_of(9, (A, H))
    have = {0: edge, 1: {}, 2: {}}
    with peers(range(3)) as cluster, ThreadPoolExecutor(3) as pool:
        came = list(
            pool.map(lambda i: cluster[i].deliver(plan, have[i], deadline_s=10.0), range(3))
        )
        phases = {s.turn.phase for e in cluster.exchanges.values() for s in e.sent}
    want = {k: digest(s) for k, s in edge.items()}
    assert [{k: digest(s) for k, s in c.items()} for c in came] == [want, want, {A: want[A]}]
    assert phases == {pb.DOWN}


def test_false_and_missing_modules_are_left_for_the_edge() -> None:
    plan = dataclasses.replace(star([]), down=DOWN[:2])
    edge = state_of(9, (A, H))
    digests = {k: digest(s) for k, s in edge.items()}
    false = {**edge, H: state_of(8, (H,))[H]}
    with peers(range(3)) as cluster, ThreadPoolExecutor(2) as pool:
        handing = pool.submit(cluster[0].deliver, plan, false, deadline_s=5.0)
        came = cluster[1].deliver(plan, {}, deadline_s=5.0, digests=digests)
        handing.result()
        lonely = dataclasses.replace(plan, down=DOWN)
        alone = cluster[2].deliver(lonely, {P: edge[A]}, deadline_s=0.5)
    assert set(came) == {A}
    assert set(alone) == {P}


def test_a_round_must_be_open_and_hold_everybody() -> None:
    with peers(range(2)) as cluster:
        with pytest.raises(PeerError, match=r"devices \[5\]"):
            cluster[0].play(star([5]), 0, [], deadline_s=1.0)
        with pytest.raises(PeerError, match="ticket of 1"):
            cluster[0].open(cluster.tickets[1], cluster.allowed)
        alone = tickets({0: "127.0.0.1:1"}, run=RUN + 1)[0]
        cluster[0].open(alone, cluster.allowed)
        with pytest.raises(ConfigError, match="cannot listen"):
            PeerExchange(1, cluster.addresses[0], insecure=True)
