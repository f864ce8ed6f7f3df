"""Devices that play their plans themselves: each on a thread, with its own peer channel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from flwr.app import Error, Message
from flwr.clientapp import ClientApp

from clients import channels
from clients.peers import PeerExchange
from hffm_flower.config import RunConfig
from hffm_flower.ledger import Ledger
from hffm_flower.rpc.codec import Allowed
from hffm_flower.rpc.tickets import Ticket
from strategies.grids import ClusterGrid
from strategies.issuer import Issuer
from strategies.peering import PeerEdgeStrategy
from tests.support.deployment import free_port
from tests.support.fake_grid import FIRST_NODE, FakeGrid
from tests.support.played import Played, RecordingApp, play

ANSWERED_AT_ONCE = ("train", "query.upload")


class LiveGrid(FakeGrid):
    """A `FakeGrid` whose devices train at the same time, and hear one another."""

    unreachable: frozenset[int] = frozenset()
    """Devices without a peer address."""
    certificates: Path | None = None
    """As `hffm certs` makes them; None: insecure."""
    timings: Path | None = None
    """Folder for when messages went."""

    def __init__(
        self, client_app: ClientApp, devices: int, run_config: Mapping[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(client_app, devices, run_config, **kwargs)
        self._pool = ThreadPoolExecutor(devices)
        self._running: dict[str, Future[Message | None]] = {}
        self.addresses: dict[int, str] = {}
        for node, context in self.contexts.items():
            index = node - FIRST_NODE
            if index not in self.unreachable:
                self.addresses[index] = f"127.0.0.1:{free_port()}"
                context.node_config["peer-address"] = self.addresses[index]
                if self.timings is not None:
                    context.node_config["timings"] = str(self.timings / f"device-{index}.jsonl")
                if self.certificates is None:
                    context.node_config["insecure"] = True
                else:
                    own = self.certificates / f"device-{index}"
                    context.node_config["certificates"] = str(own)

    def _push(self, message: Message) -> str:
        if message.metadata.message_type not in ANSWERED_AT_ONCE:
            return super()._push(message)
        message_id = str(next(self._ids))
        message.metadata.__dict__["_message_id"] = message_id
        index = message.metadata.dst_node_id - FIRST_NODE
        self.log.append((index, message.metadata.message_type))
        self._running[message_id] = self._pool.submit(self._reply, index, message)
        return message_id

    def _reply(self, index: int, message: Message) -> Message | None:
        if index in self._silent:
            return None
        context = self.contexts[message.metadata.dst_node_id]
        try:
            return self._fault(index, message) or self._app(message, context)
        except Exception as error:  # what Flower's node runner does
            return Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = list(message_ids)
        for message_id in wanted:
            if message_id in self._running and self._running[message_id].done():
                reply = self._running.pop(message_id).result()
                if reply is not None:
                    self._replies[message_id] = reply
        return super().pull_messages(wanted)

    def close(self) -> None:
        """Wait for the devices."""
        self._pool.shutdown()


class PromptExchange(PeerExchange):
    """Begins a round when all of its peers do, so that nobody has to be tried twice."""

    _gates: ClassVar[dict[tuple[int, frozenset[int]], threading.Barrier]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def open(self, ticket: Ticket, allowed: Allowed) -> None:
        super().open(ticket, allowed)
        all_of_them = frozenset(ticket.seats) | {ticket.index}
        with self._lock:
            fresh = threading.Barrier(len(all_of_them))
            gate = self._gates.setdefault((ticket.t, all_of_them), fresh)
        gate.wait(20)


class Live:
    """Runs of `federate` whose devices exchange updates themselves.

    Args:
        monkeypatch: Puts a plain grid and a strategy with an issuer in their places.
        exchange: What the devices' channels are.
        unreachable: Devices without a peer address.
        offline: Devices that the edge believes to be away when it plans.
        certificates: As `hffm certs` makes them; None: insecure.
        timings: Folder for when messages went.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        exchange: Callable[..., PeerExchange] = PromptExchange,
        unreachable: Iterable[int] = (),
        offline: Collection[int] = (),
        certificates: Path | None = None,
        timings: Path | None = None,
    ) -> None:
        ledgers: list[Ledger] = []
        grids: list[LiveGrid] = []

        class Grid(LiveGrid):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                self.unreachable, self.certificates = frozenset(unreachable), certificates
                self.timings = timings
                super().__init__(*args, **kwargs)
                grids.append(self)

        def cluster_grid(*args: Any, ledger: Ledger, **kwargs: Any) -> ClusterGrid:
            ledgers.append(ledger)
            return ClusterGrid(*args, ledger=ledger, poll_s=0.01, **kwargs)

        def strategy(*args: Any, **kwargs: Any) -> PeerEdgeStrategy:
            issuer = Issuer(grids[-1].addresses, 1, ledger=ledgers[-1])
            return PeerEdgeStrategy(*args, tickets=issuer, online=online, **kwargs)

        def online() -> list[int]:
            return [n for n in grids[-1].contexts if n - FIRST_NODE not in offline]

        PromptExchange._gates.clear()
        monkeypatch.setattr(channels, "PeerExchange", exchange)
        monkeypatch.setattr("strategies.federation.PeerGrid", cluster_grid)
        monkeypatch.setattr("strategies.planting.PeerEdgeStrategy", strategy)
        self._grid, self._grids = Grid, grids

    def play(
        self, config: RunConfig, out: Path, app: RecordingApp | None = None, **federation: Any
    ) -> Played:
        """Run it to its end."""
        return play(config, out, app=app, grid=self._grid, **federation)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the devices and free their ports."""
        for grid in self._grids:
            grid.close()
        channels.close_channels()
