"""Seconds and joules of an edge round, from the transfers that really happened in it.

The critical path follows when each node is ready. Phases and steps go in order; what a step
sends is what its senders had when the step began. So parallel links cost their maximum and
serial hops their sum.

- Uplink and downlink: the devices of a cell with modules to send in the phase share its band for
  that phase and go in parallel; one device's messages go one after the other.
- D2D: the senders of modules in a cluster's step share its band, which is not the cell's. A message
  without modules takes nothing from their shares, and goes at the rate of one. A device does one
  D2D transfer at a time, sending or receiving, in the order given. As that order is kept, more
  time anywhere never makes the round shorter.
- Backhaul: one wire per edge and direction; messages queue for it, first come, first served,
  and each arrives a fixed delay after it left the wire.
- A message that an edge only hands on (device -> edge -> cloud, or back, in one phase and step)
  is two rows of equal bytes; the second starts when the first has arrived.
- Training is added to a device's time after `Phase.SHARE` and before `Phase.EXCHANGE`. Where
  exchanges are played between parts of the training, a device's sum is the same; only waiting
  for neighbours that train longer, part by part, is not seen.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

import numpy as np

from hffm_flower.errors import ConfigError
from hffm_flower.ledger import DEVICE, PRICED, LinkClass, Phase, Transfer
from hffm_flower.wireless.energy import Activity, Compute, compute_s
from hffm_flower.wireless.network import Block, Hop
from hffm_flower.wireless.rate import latency_s
from hffm_flower.wireless.units import Array, not_negative

COMPUTE: Final = "compute"
UNTRAINED: Final = (Phase.DISPATCH, Phase.DOWN, Phase.SHARE)
"""Phases before the training."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a round costs.

    Attributes:
        latency_s: Until the last node is ready [s].
        energy_j: Of all nodes [J].
        energy_by_node_j: Address -> energy [J], of the nodes that did something.
        energy_by_link_j: Class of links, or "compute" -> energy [J].
        seconds_by_link: Class of links, or "compute" -> time spent, summed over transfers or
            devices [s]; on the backhaul with its delay.
    """

    latency_s: float
    energy_j: float
    energy_by_node_j: dict[str, float]
    energy_by_link_j: dict[str, float]
    seconds_by_link: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Leg:
    """A transfer with what it takes: time in its lanes, then a delay [s]."""

    row: Transfer
    hop: Hop
    lane_s: float
    delay_s: float

    @property
    def wired(self) -> bool:
        return self.hop.link is LinkClass.BACKHAUL

    @property
    def spent_s(self) -> float:
        return self.lane_s + self.delay_s

    def lanes(self) -> tuple[Hashable, ...]:
        """What carries one transfer at a time."""
        link, src, dst = self.hop
        if link is LinkClass.D2D:
            return (link, src), (link, dst)
        if link is LinkClass.BACKHAUL:
            return ((self.row.src, self.row.dst),)
        return ((link, self.hop.device),)


def price(transfers: Iterable[Transfer], block: Block, work: Mapping[int, float]) -> Price:
    """Price one edge round; `Phase.SETUP` and `Phase.EVALUATE` cost nothing.

    Args:
        transfers: Of one round; a transfer has 8 (bytes + header_bytes) bits. Inside a step, in
            the order in which they queue.
        block: The round's channel.
        work: Device -> floating point operations of its local training in the round.

    Returns:
        Latency and energy; infinite where a link of rate 0 had something to send.

    Raises:
        ConfigError: A transfer between nodes that have no link, transfers of several rounds, an
            unknown device or a work below 0.
    """
    legs = _legs(transfers, block)
    training_s, training_j = _training(work, block)
    clock = _Clock()
    for before, group in groupby(legs, key=lambda leg: leg.row.phase in UNTRAINED):
        if not before:
            clock.train(training_s)
        for _, step in groupby(group, key=lambda leg: leg.row.order):
            clock.play(list(step))
    clock.train(training_s)
    nodes: dict[str, float] = defaultdict(float)
    links_j: dict[str, float] = dict.fromkeys((*LinkClass, COMPUTE), 0.0)
    links_s = dict(links_j)
    drawn_w = {link: (block.radio.sender_w(link), block.radio.receiver_w(link))
               for link in LinkClass}  # fmt: skip
    for leg in legs:
        sent_j, received_j = (_energy_j(power_w, leg.spent_s) for power_w in drawn_w[leg.hop.link])
        nodes[leg.row.src] += sent_j
        nodes[leg.row.dst] += received_j
        links_j[leg.hop.link] += sent_j + received_j
        links_s[leg.hop.link] += leg.spent_s
    for device, energy_j in training_j.items():
        nodes[device] += energy_j
    links_j[COMPUTE], links_s[COMPUTE] = sum(training_j.values()), sum(training_s.values())
    latest = max(clock.ready.values(), default=0.0)
    return Price(latest, sum(links_j.values()), dict(nodes), links_j, links_s)


def _legs(transfers: Iterable[Transfer], block: Block) -> list[_Leg]:
    """The priced transfers in the order of the round, with their times."""
    rows = sorted((r for r in transfers if r.phase in PRICED), key=lambda r: r.order)
    rounds = sorted({row.t for row in rows})
    if len(rounds) > 1:
        raise ConfigError(f"transfers of the rounds {rounds}; a price is that of one round")
    hops = []
    for row in rows:
        hop = block.hop(row.src, row.dst)
        if hop.link is not row.link:
            raise ConfigError(f"{row.src} -> {row.dst} is no {row.link} but {hop.link}")
        hops.append(hop)
    bits = np.array([8.0 * (row.bytes + row.header_bytes) for row in rows])
    spent_s = latency_s(bits, block.rates_bit_s(hops, _sharers(rows, hops, block)))
    delay_s = block.radio.backhaul.delay_s
    return [
        _Leg(row, hop, lane_s, delay_s if hop.link is LinkClass.BACKHAUL else 0.0)
        for row, hop, lane_s in zip(rows, hops, spent_s.tolist(), strict=True)
    ]


def _sharers(rows: Sequence[Transfer], hops: Sequence[Hop], block: Block) -> Array:
    """Among how many the band of each transfer is shared: by cell and phase, D2D also by step."""
    bands: list[Hashable] = []
    using: dict[Hashable, set[int]] = defaultdict(set)
    for row, hop in zip(rows, hops, strict=True):
        step = row.step if hop.link is LinkClass.D2D else None
        cell = None if hop.link is LinkClass.BACKHAUL else block.edge_of[hop.device]
        band = (hop.link, row.phase, step, cell)
        bands.append(band)
        if row.modules:
            using[band].add(hop.device)
    return np.array([max(1, len(using[band])) for band in bands], dtype=np.float64)


def _training(work: Mapping[int, float], block: Block) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds and joules of every device's training."""
    radio, names = block.radio, [f"{DEVICE}/{device}" for device in work]
    unknown = [device for device in work if not 0 <= device < block.topology.devices]
    if unknown:
        raise ConfigError(f"work of unknown devices {unknown}; 0..{block.topology.devices - 1}")
    flops = not_negative("work", list(work.values()))
    spent_s = compute_s(flops, radio.flops_per_s)
    model = Compute(radio.cpu_hz, radio.kappa)
    energy_j = model.energy_j(Activity(cycles=spent_s * radio.cpu_hz))
    return (
        dict(zip(names, spent_s.tolist(), strict=True)),
        dict(zip(names, energy_j.tolist(), strict=True)),
    )


def _energy_j(power_w: float, spent_s: float) -> float:
    """Power over a time that may be infinite; no power costs nothing, however long."""
    return power_w * spent_s if power_w > 0 else 0.0


@dataclass(slots=True)
class _Clock:
    """When every node is ready, and every lane free [s]."""

    ready: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    free: dict[Hashable, float] = field(default_factory=lambda: defaultdict(float))
    trained: bool = False

    def train(self, training_s: Mapping[str, float]) -> None:
        """Let all devices train, once."""
        if not self.trained:
            for device, spent_s in training_s.items():
                self.ready[device] += spent_s
            self.trained = True

    def play(self, legs: Sequence[_Leg]) -> None:
        """Let one step happen."""
        first = _handed_on(legs)
        began = {leg.row.src: self.ready[leg.row.src] for leg in legs}
        arrival: dict[int, float] = {}
        for index, leg in enumerate(legs):
            if index not in first:
                arrival[index] = self._send(leg, began[leg.row.src])
        for index in sorted(first, key=lambda second: arrival[first[second]]):
            arrival[index] = self._send(legs[index], arrival[first[index]])
        for index, leg in enumerate(legs):
            self.ready[leg.row.dst] = max(self.ready[leg.row.dst], arrival[index])

    def _send(self, leg: _Leg, released_s: float) -> float:
        """When it arrives [s]."""
        lanes = leg.lanes()
        end_s = max(released_s, *(self.free[lane] for lane in lanes)) + leg.lane_s
        self.free.update(dict.fromkeys(lanes, end_s))
        return end_s + leg.delay_s


def _handed_on(legs: Sequence[_Leg]) -> dict[int, int]:
    """Second hop -> first hop of the messages that an edge hands on, in the order of logging.

    A later row is the second hop of the first free row that ended where it begins, with the
    same bytes, if one of the two is the air and the other the wire.
    """
    waiting: dict[Hashable, deque[int]] = defaultdict(deque)
    first = {}
    for index, leg in enumerate(legs):
        row = leg.row
        came = waiting[row.src, row.bytes, not leg.wired]
        if came:
            first[index] = came.popleft()
        else:
            waiting[row.dst, row.bytes, leg.wired].append(index)
    return first
