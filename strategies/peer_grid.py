"""Where the links between devices would be: plays a cluster's exchange in this process.

Simulated devices cannot wait for one another. `PeerGrid` stands between an edge and its
devices: it hands published modules from device to device as the plan says, has every device
train on what would have reached it, plays the exchange of the updates, and passes on to the
edge what would have come up. Edge and devices notice no difference to a real network.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Error, Message, RecordDict

from hffm_flower.d2d import EDGE, Fault, Parcel, Plan, mixed, plan_from_json, play, uploads_of
from hffm_flower.d2d.play import Sent
from hffm_flower.errors import HffmError, Interrupted, ProtocolError
from hffm_flower.ledger import Phase
from hffm_flower.modules import ModularState, ModularUpdate, ModuleKey, shapes
from hffm_flower.payload import (
    TRAINED,
    own_upload,
    packed,
    peer_transfer,
    plan_of,
    trained_record,
    weigh_letter,
)
from hffm_flower.records import (
    CONFIG,
    MASS,
    MODULES,
    mass_record,
    modules_of,
    modules_record,
    number,
    text,
    update_of,
)
from hffm_flower.rpc import exchange_pb2 as pb
from hffm_flower.rpc.codec import Envelope, Turn
from hffm_flower.rpc.letters import Writer
from strategies.grids import NO_ANSWER, UPLOAD, ClusterGrid, instruction
from strategies.modular import METRICS, ROUNDING, TOO_LARGE

Faults = Callable[[int, int], Mapping[int, Fault]]
"""Edge and edge round -> devices that fail in that exchange, and how."""


class PeerGrid(ClusterGrid):
    """`ClusterGrid` that plays the plans in the messages.

    Args:
        args: As in `ClusterGrid`.
        faults: Failures to play.
        kwargs: As in `ClusterGrid`; the last hop to a node is the device's address.
    """

    def __init__(self, *args: Any, faults: Faults = lambda edge, t: {}, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._faults = faults
        self.most: dict[int, float] = {}
        """Device's node -> most mass that it can have [examples], where that is known."""
        self._kept: dict[int, tuple[int, ModularUpdate]] = {}
        """Device's node -> edge round and own update, as the device itself keeps it."""

    def _exchange(self, asked: list[Message], timeout: float | None) -> list[Message]:
        clusters: dict[int, _Exchange] = {}
        replies: dict[int, Message] = {}
        alone: list[Message] = []
        for message in asked:
            if plan_of(message.content) is not None:
                edge = number(message.content, CONFIG, "edge")
                clusters.setdefault(edge, _Exchange(self, edge)).add(message)
            elif message.metadata.message_type == UPLOAD:
                replies[_node(message)] = self._upload(message)
            else:
                alone.append(message)
        exchanges = list(clusters.values())
        for exchange in exchanges:
            exchange.deliver()
        for segment in range(max((e.plan.segments for e in exchanges), default=1)):
            due = [e for e in exchanges if segment < e.plan.segments]
            sent = [m for e in due for m in e.instructions(segment)]
            sent += alone if segment == 0 else []
            got = super()._exchange(sent, timeout)
            replies |= {_node(m): reply for m, reply in zip(sent, got, strict=True)}
            for exchange in due:
                exchange.play(replies, segment, self._faults(exchange.edge, exchange.t))
        for exchange in exchanges:
            for node, update in exchange.updates.items():
                self._kept[node] = (exchange.t, update)
            replies |= exchange.replies()
        return [replies[_node(m)] for m in asked]

    def _upload(self, message: Message) -> Message:
        """A device's own update of this round, which it keeps until the edge has published."""
        t = number(message.content, CONFIG, "t")
        kept, update = self._kept.get(message.metadata.dst_node_id, (0, None))
        if update is None or kept != t:
            reason = f"no update of edge round {t} is kept here"
            return Message(Error(NO_ANSWER, reason), reply_to=message)
        keys = [ModuleKey.parse(k) for k in json.loads(text(message.content, CONFIG, "keys"))]
        sent = own_upload(update, keys)
        content = RecordDict({MODULES: modules_record(sent.state), MASS: mass_record(sent.mass)})
        return Message(content, reply_to=message)

    def check_going(self) -> None:
        """Raise `Interrupted` if the run was asked to stop."""
        if self._stop.is_set():
            raise Interrupted("stopped on request")

    def index_of(self, node: int) -> int:
        """Index of the device behind a node id."""
        assert self.hops is not None
        return int(self.hops[node][-1].rpartition("/")[2])

    def enter_peers(
        self, t: int, phase: Phase, step: int, envelope: Envelope, parcels: tuple[Parcel, ...]
    ) -> None:
        """Enter a message between two devices into the ledger, as it would weigh over gRPC."""
        weight = weigh_letter(Writer(dry=True).letter(envelope, parcels))
        self._ledger.add(peer_transfer(t, phase, step, envelope.src, envelope.dst, weight))


class _Exchange:
    """One cluster's exchange of one round."""

    def __init__(self, grid: PeerGrid, edge: int) -> None:
        self.grid, self.edge = grid, edge
        self.plan: Plan
        self.run, self.t = 0, 0
        self.asked: dict[int, Message] = {}
        self.keys: dict[int, tuple[ModuleKey, ...]] = {}
        self.modules: dict[int, ModularState] = {}
        self.updates: dict[int, ModularUpdate] = {}
        self._last: dict[int, Message] = {}
        self._parcels: Mapping[int, tuple[Parcel, ...]] = {}
        self._dead: frozenset[int] = frozenset()

    def add(self, message: Message) -> None:
        """Take the edge's instruction to one of the devices."""
        found = plan_of(message.content)
        assert found is not None
        node = message.metadata.dst_node_id
        self.plan, self.t = plan_from_json(found[0]), number(message.content, CONFIG, "t")
        self.run = message.metadata.run_id
        self.asked[node], self.keys[node] = message, found[1]

    def deliver(self) -> None:
        """Hand the published modules on, from the edge and from device to device."""
        index_of = self.grid.index_of
        has: dict[int, dict[ModuleKey, Mapping[str, Any]]] = defaultdict(dict)
        for node, message in self.asked.items():
            has[index_of(node)].update(modules_of(message.content))
        for hop in self.plan.down:
            if hop.src == EDGE:
                continue
            state = {k: has[hop.src][k] for k in hop.keys}
            has[hop.dst].update(state)
            parcel = Parcel(ModularUpdate.of(state, 0.0), {key: {} for key in state})
            envelope = Envelope(self.run, self.t, Turn(pb.DOWN, 0, hop.step), hop.src, hop.dst)
            self.grid.enter_peers(self.t, Phase.SHARE, hop.step, envelope, (parcel,))
        for node, keys in self.keys.items():
            if lacking := [str(k) for k in keys if k not in has[index_of(node)]]:
                raise ProtocolError(f"the plan brings device {index_of(node)} no {lacking}")
            self.modules[node] = {k: has[index_of(node)][k] for k in keys}

    def instructions(self, segment: int) -> list[Message]:
        """What each device is to train on: all its modules, and no plan."""
        messages = []
        for node, modules in self.modules.items():
            question = self.asked[node]
            config = ConfigRecord({"t": self.t, "segment": segment, "segments": self.plan.segments})
            content = RecordDict({MODULES: modules_record(modules), CONFIG: config})
            messages.append(
                instruction(
                    content,
                    node_id=node,
                    kind=question.metadata.message_type,
                    t=self.t,
                    ttl_s=question.metadata.ttl,
                )
            )
        return messages

    def play(self, got: Mapping[int, Message], segment: int, faults: Mapping[int, Fault]) -> None:
        """Exchange the updates of those that have answered."""
        self.updates = {}
        for node in list(self.modules):
            self._last[node] = reply = got[node]
            try:
                update = None if reply.has_error() else update_of(reply.content)
            except HffmError:
                update = None  # the edge reads the reply, and says why it is of no use
            most = self.grid.most.get(node, math.inf)
            if update is None or not _fits(update, self.modules[node], most):
                del self.modules[node]
            else:
                self.updates[node] = update
        nodes = {self.grid.index_of(node): node for node in self.updates}
        last = segment + 1 == self.plan.segments

        def enter(sent: Sent) -> None:
            self.grid.check_going()
            turn = Turn(pb.UP, segment, sent.step)
            envelope = Envelope(self.run, self.t, turn, sent.src, sent.dst)
            place = segment * len(self.plan.steps) + sent.step
            self.grid.enter_peers(self.t, Phase.EXCHANGE, place, envelope, sent.parcels)

        played = play(
            {index: self.updates[node] for index, node in nodes.items()}, self.plan,
            faults=faults if last else {}, tell=enter,
        )  # fmt: skip
        for index, held in played.held.items():
            node = nodes[index]
            came = {} if last else mixed(held)
            own = {**self.modules[node], **self.updates[node].state, **came}
            self.modules[node] = {k: own[k] for k in self.keys[node]}
        self._dead = frozenset(nodes[k] for k in played.dead if k in nodes)
        self._parcels = {nodes[k]: p for k, p in uploads_of(played, self.plan).items()}

    def replies(self) -> dict[int, Message]:
        """What reaches the edge: figures of all, parcels of those that upload."""
        out = {}
        for node, question in self.asked.items():
            if node in self._dead:
                gone = Error(NO_ANSWER, "the device is gone")
                out[node] = Message(gone, reply_to=question)
            elif node in self.updates:
                content = packed(self._parcels[node]) if node in self._parcels else RecordDict()
                content[TRAINED] = trained_record(self.updates[node])
                if (figures := self._last[node].content.get(METRICS)) is not None:
                    content[METRICS] = figures
                out[node] = Message(content, reply_to=question)
            else:
                out[node] = self._last[node]
        return out


def _fits(update: ModularUpdate, sent: ModularState, most: float) -> bool:
    """Whether a neighbour can merge it: as the modules that were sent, within bounds."""
    return all(
        key in sent
        and update.mass[key] <= most * (1 + ROUNDING)
        and shapes({key: state}) == shapes({key: sent[key]})
        and all(a.dtype == np.float32 and (np.abs(a) < TOO_LARGE).all() for a in state.values())
        for key, state in update.state.items()
    )


def _node(message: Message) -> int:
    """The node that an instruction is for."""
    return message.metadata.dst_node_id
