"""A cluster of peers on loopback, in one process, and pushes made by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from clients.inbox import Limits
from clients.peers import PeerExchange
from hffm_flower.d2d import Cluster, Parcel, PeerStep, Plan
from hffm_flower.modules import ModularUpdate, ModuleKey, shapes
from hffm_flower.rpc import exchange_pb2 as pb
from hffm_flower.rpc.channel import Credentials, open_channel
from hffm_flower.rpc.codec import Allowed, Envelope, Turn, Verdict
from hffm_flower.rpc.exchange_pb2_grpc import PeerExchangeStub
from hffm_flower.rpc.letters import Letter, Writer
from hffm_flower.rpc.reactor import Reactor
from hffm_flower.rpc.tickets import Ticket, issue
from tests.support.memory import A, H, P

RUN, ROUND = 7, 3
SECRET = bytes(range(32))
FIRST = Turn(pb.UP, 0, 0)
SIZES = {A: 40, H: 3, P: 5}
"""Floats of each module."""


def state_of(device: int, keys: Iterable[ModuleKey]) -> dict[ModuleKey, dict[str, np.ndarray]]:
    """What ``device`` trained; other bits for every device."""
    draw = np.random.default_rng(device)
    return {k: {"w": draw.standard_normal(SIZES[k]).astype(np.float32)} for k in sorted(keys)}


def update_of(device: int, keys: Iterable[ModuleKey] = (A, H, P)) -> ModularUpdate:
    return ModularUpdate.of(state_of(device, keys), 10.0 + device / 7)


def allowed_for(devices: Iterable[int]) -> Allowed:
    return Allowed(shapes(state_of(0, SIZES)), dict.fromkeys(devices, 1000.0))


def tickets(addresses: Mapping[int, str], *, run: int = RUN, t: int = ROUND) -> dict[int, Ticket]:
    return issue(SECRET, addresses, run=run, t=t)


def star(leaves: Iterable[int], head: int = 0, keys: Iterable[ModuleKey] = (A, H, P)) -> Plan:
    """All ``leaves`` send all they have to ``head`` in one step."""
    shares = dict.fromkeys(keys, 1.0)
    return Plan("relay", (), (PeerStep({i: {head: shares} for i in leaves}),), {head: (A,)}, {})


def ring(size: int, holds: Mapping[int, tuple[ModuleKey, ...]]) -> Cluster:
    """Devices in a ring, of links with different costs."""
    links = [(i, (i + d) % size) for i in range(size) for d in (1, size - 1)]
    cost = {link: 1e-6 * (1 + n % 5) for n, link in enumerate(links)}
    per = {i: 1e-5 * (1 + i) for i in range(size)}
    sizes = {k: 4 * n for k, n in SIZES.items()}
    return Cluster(holds, sizes, cost, cost, per, per, per, per, dict.fromkeys(per, 100.0), t=ROUND)


class Peers:
    """Live exchanges of devices 0, 1, ..., that share an event loop."""

    def __init__(
        self,
        reactor: Reactor,
        devices: Sequence[int],
        limits: Limits | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.reactor = reactor
        self.allowed = allowed_for(devices)
        self.exchanges = {
            i: PeerExchange(
                i,
                "127.0.0.1:0",
                credentials=credentials,
                insecure=credentials is None,
                limits=limits,
                reactor=reactor,
            )
            for i in devices
        }
        self.admit()

    def admit(self) -> None:
        """Open a round for those that there are now."""
        self.addresses = {i: f"127.0.0.1:{e.port}" for i, e in self.exchanges.items()}
        self.tickets = tickets(self.addresses)
        for i, exchange in self.exchanges.items():
            exchange.open(self.tickets[i], self.allowed)

    def __getitem__(self, index: int) -> PeerExchange:
        return self.exchanges[index]

    def play(
        self,
        plan: Plan,
        updates: Mapping[int, ModularUpdate],
        *,
        segment: int = 0,
        deadline_s: float = 20.0,
    ) -> dict[int, tuple[Parcel, ...]]:
        """All devices of ``updates`` play the plan, each on a thread of its own."""

        def one(i: int) -> tuple[Parcel, ...]:
            held = [Parcel.of(updates[i], i)]
            return self.exchanges[i].play(plan, segment, held, deadline_s=deadline_s)

        with ThreadPoolExecutor(len(updates)) as pool:
            return dict(zip(updates, pool.map(one, updates), strict=True))

    def close(self) -> None:
        for exchange in self.exchanges.values():
            exchange.close()


@contextlib.contextmanager
def peers(
    devices: Iterable[int],
    limits: Limits | None = None,
    credentials: Credentials | None = None,
) -> Iterator[Peers]:
    with Reactor() as reactor:
        cluster = Peers(reactor, list(devices), limits, credentials)
        try:
            yield cluster
        finally:
            cluster.close()


def letter(
    ticket: Ticket,
    dst: int,
    parcels: Sequence[Parcel] = (),
    *,
    turn: Turn = FIRST,
) -> Letter:
    """A good message of the ticket's device."""
    envelope = Envelope(ticket.run, ticket.t, turn, ticket.index, dst)
    return Writer().letter(envelope, parcels, ticket.seats[dst].key)


def chunks_of(message: Letter) -> list[pb.Chunk]:
    """A letter as the messages of `exchange.proto`."""
    return [pb.Chunk.FromString(frame) for frame, _ in message.frames()]


def push(
    reactor: Reactor,
    address: str,
    chunks: Iterable[pb.Chunk | float],
    *,
    credentials: Credentials | None = None,
    timeout_s: float = 10.0,
) -> Verdict:
    """Push by hand; a number is a pause [s] between two chunks."""

    async def paced() -> AsyncIterator[pb.Chunk]:
        for chunk in chunks:
            if isinstance(chunk, float):
                await asyncio.sleep(chunk)
            else:
                yield chunk

    async def send() -> Verdict:
        async with open_channel(address, credentials) as channel:
            receipt = await PeerExchangeStub(channel).Push(paced(), timeout=timeout_s)
            return Verdict(receipt.verdict)

    return reactor.run(send())


def same_parcels(one: Sequence[Parcel], other: Sequence[Parcel]) -> bool:
    """Whether two lists of parcels hold the same bits, masses and names."""
    return len(one) == len(other) and all(
        a.intact == b.intact
        and a.update.mass == b.update.mass
        and {k: dict(v) for k, v in a.behind.items()} == {k: dict(v) for k, v in b.behind.items()}
        and a.update.state.keys() == b.update.state.keys()
        and all(
            x.tobytes() == y.tobytes() and n == m
            for k in a.update.state
            for (n, x), (m, y) in zip(
                sorted(a.update.state[k].items()), sorted(b.update.state[k].items()), strict=True
            )
        )
        for a, b in zip(one, other, strict=True)
    )
