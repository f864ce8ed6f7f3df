"""What a train call does with a plan: modules from peers, training, and the exchange behind it.

The same as `strategies.peer_grid.PeerGrid` plays in simulation, to the bit. Nothing that goes
wrong between peers is an error of the call: the edge learns what the device has trained and
asks for what no parcel brought.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import grpc
import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from clients.channels import NodeConfig, peer_channel
from clients.outbox import Transmission
from clients.peers import PeerExchange
from clients.resident import Device
from clients.store import DeviceStore
from clients.timings import note
from clients.trainer import Trained, train
from hffm_flower.d2d import Parcel, Plan, mixed, plan_from_json, upload_of
from hffm_flower.errors import DivergedError, HffmError, ProtocolError
from hffm_flower.ledger import Phase, Transfer
from hffm_flower.modules import ModularUpdate, ModuleKey, ModuleState
from hffm_flower.payload import (
    LACKING,
    SENT,
    TRAINED,
    Admission,
    Weight,
    admission_of,
    packed,
    peer_transfer,
    plan_of,
    sent_record,
    trained_record,
)
from hffm_flower.records import modules_of
from hffm_flower.rpc import exchange_pb2 as pb

_log = logging.getLogger(__name__)

DOWN_UNTIL: Final = 0.2
UP_UNTIL: Final = 0.8
"""Shares of the time for a reply after which modules, and parcels, are no longer awaited."""

Modules = Mapping[ModuleKey, ModuleState]


@dataclass(frozen=True, slots=True)
class Clock:
    """The time that a call has for its reply.

    Attributes:
        began: Clock time at which it began [s].
        total_s: How long the edge waits from then on [s].
    """

    began: float
    total_s: float

    @classmethod
    def of(cls, message: Message, deadline_s: float) -> Clock:
        """Of a call that begins now; a message that was long on its way leaves less time."""
        late_s = max(0.0, time.time() - message.metadata.created_at)
        return cls(time.monotonic(), max(0.0, deadline_s - late_s))

    def left_s(self, share: float) -> float:
        """Time until ``share`` of the total is over."""
        return max(0.0, self.began + share * self.total_s - time.monotonic())


class Circle:
    """This device's peers in one edge round; what fails among them is logged, never raised."""

    def __init__(
        self, node_config: NodeConfig, plan: Plan, admission: Admission, clock: Clock
    ) -> None:
        self.me = admission.ticket.index
        self.plan = plan
        self._admission = admission
        self._clock = clock
        self._node_config = node_config
        self._channel: PeerExchange | None = None
        try:
            channel = peer_channel(node_config, self.me)
            channel.open(admission.ticket, admission.allowed)
            self._channel = channel
        except (HffmError, OSError) as error:
            _log.warning("device %d cannot join its peers: %s", self.me, error)

    def deliver(self, modules: Modules) -> dict[ModuleKey, ModuleState]:
        """Modules that came from the edge, and those that peers bring."""
        if self._channel is None:
            return dict(modules)
        try:
            return self._channel.deliver(
                self.plan, modules,
                deadline_s=self._clock.left_s(DOWN_UNTIL), digests=self._admission.digests,
            )  # fmt: skip
        except (HffmError, grpc.RpcError) as error:
            _log.warning("device %d: modules from peers: %s", self.me, error)
            return dict(modules)

    def play(self, segment: int, update: ModularUpdate) -> tuple[Parcel, ...]:
        """What the device holds after the exchange behind ``segment``."""
        own = Parcel.of(update, self.me)
        part = (segment + 1) / self.plan.segments
        until = DOWN_UNTIL + (UP_UNTIL - DOWN_UNTIL) * part
        if self._channel is not None:
            try:
                return self._channel.play(
                    self.plan, segment, [own], deadline_s=self._clock.left_s(until)
                )
            except (HffmError, grpc.RpcError) as error:
                _log.warning("device %d: exchange with peers: %s", self.me, error)
        return (dataclasses.replace(own, intact=False),)

    def transfers(self, t: int) -> list[Transfer]:
        """What was sent, as rows of the ledger."""
        if self._channel is None:
            return []
        sent, ready_s = self._channel.sent, self._channel.ready_s
        note(
            self._node_config, "peers", t=t, device=self.me,
            ready=[[*turn, at_s] for turn, at_s in ready_s.items()],
            sent=[[*one.turn, one.dst, one.letter_bytes, one.began_s, one.ended_s]
                  for one in sent if one.arrived],
        )  # fmt: skip
        return [row for one in sent for row in _rows(t, one, len(self.plan.steps))]


def train_among_peers(
    message: Message, device: Device, store: DeviceStore, node_config: NodeConfig, *, t: int
) -> RecordDict:
    """Carry out an instruction with a plan; returns the reply's content.

    Raises:
        ProtocolError: The device is not admitted to its peers.
        DivergedError: Training left the finite numbers.
    """
    found = plan_of(message.content)
    assert found is not None
    admission, me = admission_of(message.content), device.profile.index
    if (admission.ticket.index, admission.ticket.t) != (me, t):
        raise ProtocolError(f"the ticket is not that of device {me} in edge round {t}")
    clock = Clock.of(message, admission.deadline_s)
    circle = Circle(node_config, plan_from_json(found[0]), admission, clock)
    have = circle.deliver(modules_of(message.content))
    lacking = [key for key in found[1] if key not in have]
    if lacking:
        _log.warning("device %d was brought no %s", me, ", ".join(map(str, lacking)))
        held = _pass_on(circle)
        content = _reply(circle, held, ModularUpdate({}, {}), None, t)
        content[LACKING] = ConfigRecord({"keys": " ".join(map(str, lacking))})
        return content
    update, done, held = _train(circle, device, store, {k: have[k] for k in found[1]}, t)
    return _reply(circle, held, update, done, t)


def _train(
    circle: Circle, device: Device, store: DeviceStore, modules: Modules, t: int
) -> tuple[ModularUpdate, Trained, tuple[Parcel, ...]]:
    """Train and exchange, part by part; the own update, figures, and what is then held."""
    config, segments = device.config, circle.plan.segments
    model = device.model(modules)
    own = set(model.keys) - set(modules)
    if own:
        model.load(store.read(t))
    data = device.train_data()
    progress = None
    for segment in range(segments):
        model.load(modules)
        done = train(
            model, data, config.train,
            t=t, rounds=config.rounds, seed=config.seed, device_index=circle.me,
            segment=segment, segments=segments, progress=progress, resting=device.resting(t),
            personal=own,
        )  # fmt: skip
        progress = done.progress
        mass = {k: n for k, n in done.mass.items() if k in modules}
        update = ModularUpdate(model.state(mass), mass)
        if not all(np.isfinite(a).all() for s in update.state.values() for a in s.values()):
            raise DivergedError(f"the modules are not finite after edge round {t}")
        if segment + 1 == segments:
            if own:
                store.publish(model.state(own), t)
            store.keep(update, t)
        held = circle.play(segment, update)
        if segment + 1 < segments:
            after = {**modules, **update.state, **mixed(held)}
            modules = {k: after[k] for k in modules}
    return update, done, held


def _pass_on(circle: Circle) -> tuple[Parcel, ...]:
    """Play with nothing of its own: what others send through this device still arrives."""
    held: tuple[Parcel, ...] = ()
    for segment in range(circle.plan.segments):
        held = circle.play(segment, ModularUpdate({}, {}))
    return held


def _reply(
    circle: Circle, held: tuple[Parcel, ...], update: ModularUpdate, done: Trained | None, t: int
) -> RecordDict:
    """Figures of all, parcels of those that upload."""
    uploads = circle.me in circle.plan.uploads
    content = packed(upload_of(held, circle.plan, circle.me)) if uploads else RecordDict()
    content[TRAINED] = trained_record(update)
    content["metrics"] = MetricRecord(
        {
            "loss": done.loss if done else 0.0,
            "examples": done.examples if done else 0,
            "flops": done.flops if done else 0.0,
        }
    )
    content[SENT] = sent_record(t, circle.transfers(t))
    return content


def _rows(t: int, sent: Transmission, steps: int) -> Iterator[Transfer]:
    """A message that arrived is a row; so is what its other tries put on the air."""
    turn = sent.turn
    phase = Phase.SHARE if turn.phase == pb.DOWN else Phase.EXCHANGE
    step = turn.segment * steps + turn.step
    wasted = sent.payload_bytes + sent.header_bytes
    if sent.arrived:
        header_bytes = sent.letter_bytes - sum(sent.sizes)
        weight = Weight(header_bytes, tuple(map(str, sent.modules)), sent.sizes)
        yield peer_transfer(t, phase, step, sent.src, sent.dst, weight)
        wasted -= sent.letter_bytes
    if wasted > 0:
        yield peer_transfer(t, phase, step, sent.src, sent.dst, Weight(wasted))
