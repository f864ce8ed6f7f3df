"""Edges and clouds that are driven by hand, with made-up training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message
from hypothesis import strategies as st

from hffm_flower.modules import ModularState, ModularUpdate, ModuleKey, ModuleState
from hffm_flower.records import (
    CONFIG,
    modules_of,
    number,
    update_of,
)
from hffm_flower.schedule import Schedule
from strategies.edge import EdgeStrategy
from strategies.modular import Member
from tests.support.memory import (
    KEYS,
    A,
    H,
    P,
    module,
    numbered,
    scored,
    trained,
)

NODE = 100
"""Node id of device 0."""


START: ModularState = {A: module(1, -2, 3), H: module(0.5, 4), P: module(-1)}


SCORES = {"iid/easyvqa10": (1, 2, 1.0)}


def members(holdings: Mapping[int, Iterable[ModuleKey]]) -> dict[int, Member]:
    return {NODE + k: Member(k, tuple(sorted(keys))) for k, keys in holdings.items()}


def edge_of(
    schedule: Schedule,
    holdings: Mapping[int, Iterable[ModuleKey]],
    *,
    index: int = 0,
    quorum: float = 0.5,
) -> EdgeStrategy:
    return EdgeStrategy(
        index, members(holdings), schedule, seed=1, fraction=1.0, rule="mean",
        optimizer="*=mean",        quorum=quorum, deadline_s=5.0, report_every=1,
    )  # fmt: skip


def play(
    edge: EdgeStrategy, message: Message, device: Callable[[Message], Message]
) -> ModularUpdate:
    """Play a cloud message against devices that are a function."""
    steps = edge.cluster_round(message.metadata.message_type, message.content)
    try:
        asked = next(steps)
        while True:
            asked = steps.send([device(numbered(m)) for m in asked])
    except StopIteration as stop:
        return update_of(stop.value)


@dataclass
class Plan:
    """What every device does at every t, and what it was sent."""

    state: Callable[[int, int, ModuleKey, ModuleState], ModuleState]
    mass: Callable[[int, int, ModuleKey], float]
    sent: list[tuple[int, int, str, ModularState]] = field(default_factory=list)

    def __call__(self, message: Message) -> Message:
        device = message.metadata.dst_node_id - NODE
        t = number(message.content, CONFIG, "t")
        got = modules_of(message.content)
        self.sent.append((t, device, message.metadata.message_type, got))
        if message.metadata.message_type == "evaluate":
            return scored(message, SCORES)
        state = {k: self.state(device, t, k, s) for k, s in got.items()}
        return trained(message, state, {k: self.mass(device, t, k) for k in got})


def moved(device: int, t: int, key: ModuleKey, state: ModuleState) -> ModuleState:
    """Training, as far as averaging is concerned: another move for every (device, t, key)."""
    rng = np.random.default_rng([device, t, KEYS.index(key)])
    return {n: a + rng.normal(size=a.shape).astype(np.float32) for n, a in state.items()}


def cloud_schedule(period: int, rounds: int, policy: str = "") -> Schedule:
    return Schedule.of(KEYS, method="h-fedfm", policy=policy, period=period, rounds=rounds)


Masses = dict[tuple[int, int, ModuleKey], float]


@st.composite
def masses(draw: st.DrawFn, devices: int, rounds: int) -> Masses:
    sizes = st.one_of(st.just(0.0), st.integers(1, 99).map(float))
    return {
        (k, t, key): draw(sizes)
        for k in range(devices) for t in range(1, rounds + 1) for key in KEYS
    }  # fmt: skip
