"""Live devices end with the same bits over gRPC as in `d2d.play`, under every fault."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from clients.outbox import Transmission
from hffm_flower.d2d import (
    Fault,
    Parcel,
    Plan,
    PlanOptions,
    make_plan,
    play,
    settle,
    uploads_of,
)  # fmt: skip
from hffm_flower.modules import ModuleKey
from hffm_flower.rpc.reactor import Reactor
from tests.support.faulty import FaultyExchange, Gone
from tests.support.memory import A, H, P
from tests.support.peers import Peers, ring, same_parcels, update_of

HOLDS: dict[int, tuple[ModuleKey, ...]] = {
    0: (A, H), 1: (A, P), 2: (A, H, P), 3: (A,), 4: (A, H), 5: (A, P),
}  # fmt: skip
UPDATES = {i: update_of(i, keys) for i, keys in HOLDS.items()}
PLANS = {
    name: make_plan(name, ring(6, HOLDS), options)
    for name, options in {"relay": PlanOptions(), "gossip": PlanOptions(accuracy=0.3)}.items()
}
DEADLINE_S = 16.0
Case = tuple[str, Fault, int]
FAULTY = (2, 4)
CASES: list[Case] = list(itertools.product(PLANS, Fault, FAULTY))


@dataclasses.dataclass(frozen=True)
class Outcome:
    held: dict[int, tuple[Parcel, ...]]
    took_s: float
    sent: list[Transmission]


def run(reactor: Reactor, case: Case) -> Outcome:
    name, fault, faulty = case
    cluster = Peers(reactor, list(HOLDS))
    cluster[faulty].close()
    exchange = cluster.exchanges[faulty] = FaultyExchange(faulty, fault, reactor)
    cluster.admit()
    began = time.monotonic()

    def one(i: int) -> tuple[Parcel, ...] | None:
        try:
            return cluster[i].play(
                PLANS[name], 0, [Parcel.of(UPDATES[i], i)], deadline_s=DEADLINE_S
            )
        except Gone:
            exchange.close()
            return None

    with ThreadPoolExecutor(len(HOLDS)) as pool:
        came = dict(zip(HOLDS, pool.map(one, HOLDS), strict=True))
    took_s = time.monotonic() - began
    cluster.close()
    if fault == Fault.HEAD_DEAD:
        came[faulty] = None
    return Outcome({i: held for i, held in came.items() if held is not None}, took_s, exchange.sent)


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[Case, Outcome]]:
    """All cases at once: they mostly wait."""
    with Reactor() as reactor, ThreadPoolExecutor(len(CASES)) as pool:
        yield dict(zip(CASES, pool.map(lambda case: run(reactor, case), CASES), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
def test_live_devices_hold_what_play_gives(outcomes: dict[Case, Outcome], case: Case) -> None:
    name, fault, faulty = case
    want = play(UPDATES, PLANS[name], faults={faulty: fault})
    held = outcomes[case].held
    assert held.keys() == want.held.keys()
    assert [i for i in held if not same_parcels(held[i], want.held[i])] == []
    assert outcomes[case].took_s < 3 * DEADLINE_S  # a machine may be busy; none waits for ever


@pytest.mark.parametrize("case", [c for c in CASES if c[1] == Fault.DUPLICATE], ids=str)
def test_a_sender_takes_a_duplicate_for_a_receipt(
    outcomes: dict[Case, Outcome], case: Case
) -> None:
    assert outcomes[case].sent
    assert [s for s in outcomes[case].sent if not s.arrived] == []


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
def test_every_live_device_counts_once(outcomes: dict[Case, Outcome], case: Case) -> None:
    plan: Plan = PLANS[case[0]]
    held = outcomes[case].held
    played = dataclasses.replace(play(UPDATES, plan), held=held)
    own = {i: UPDATES[i].mass for i in held}
    settled = settle(plan, uploads_of(played, plan), own)
    counted = {
        (device, key): mass
        for parcel in settled.accepted
        for key, behind in parcel.behind.items()
        for device, mass in behind.items()
    }
    asked = {(d, key) for d, keys in settled.missing.items() for key in keys}
    assert counted.keys().isdisjoint(asked)
    assert {(i, k) for i in held for k in HOLDS[i]} <= counted.keys() | asked
    assert all(mass == UPDATES[i].mass[k] for (i, k), mass in counted.items())
