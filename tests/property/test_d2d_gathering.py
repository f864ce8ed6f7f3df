"""Taking senders one at a time gives the bits of joining all at once."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hffm_flower.d2d import Gathering, Parcel, PeerStep, join
from hffm_flower.modules import ModularUpdate
from tests.support.memory import KEYS
from tests.support.peers import same_parcels

ME = 0
masses = st.one_of(st.floats(1e-3, 1e6), st.integers(-30, 0).map(lambda n: 10.0**n), st.just(0.0))


@st.composite
def parcels(draw: st.DrawFn) -> Parcel:
    state = {}
    behind = {}
    for key in draw(st.sets(st.sampled_from(KEYS))):
        numbers = draw(st.integers(0, 2**32 - 1))
        state[key] = {"w": np.random.default_rng(numbers).standard_normal(3).astype(np.float32)}
        behind[key] = draw(st.dictionaries(st.integers(0, 9), masses, min_size=1, max_size=3))
    mass = {key: sum(devices.values()) for key, devices in behind.items()}
    return Parcel(ModularUpdate(state, mass), behind, draw(st.booleans()))


messages = st.lists(parcels(), max_size=3).map(tuple)


Parcels = tuple[Parcel, ...]


def overlap(a: Parcel, b: Parcel) -> bool:
    return any(a.behind[k].keys() & b.behind[k].keys() for k in a.behind.keys() & b.behind.keys())


def at_once(
    kept: Parcels, received: dict[int, Parcels], step: PeerStep, *, summing: bool
) -> Parcels:
    """The same, said plainly: all that is taken is held, and joined at the end."""
    sources = step.sources(ME)
    if not sources:
        return kept
    held = list(kept)
    intact = all(src in received for src in sources)
    for src in sources:
        whole = all(share == 1.0 for share in step.sends[src][ME].values())
        for parcel in received.get(src, ()):
            if whole and any(overlap(parcel, other) for other in held):
                intact = False
            else:
                held.append(parcel)
    if summing:
        held = [join(held)]
    if not intact:
        held = [dataclasses.replace(p, intact=False) for p in held or [join(())]]
    return tuple(p for p in held if p.matters())


@given(
    kept=messages,
    received=st.dictionaries(st.integers(1, 5), messages, max_size=5),
    silent=st.sets(st.integers(6, 8)),
    whole=st.sets(st.integers(1, 5)),
    summing=st.booleans(),
)
def test_gathering_is_joining_at_once(
    kept: tuple[Parcel, ...],
    received: dict[int, tuple[Parcel, ...]],
    silent: set[int],
    whole: set[int],
    summing: bool,
) -> None:
    step = PeerStep(
        {
            src: {ME: dict.fromkeys(KEYS, 1.0 if src in whole else 0.5)}
            for src in {*received, *silent}
        }
    )
    gathering = Gathering(kept, step, ME, summing=summing)
    for src in step.sources(ME):
        gathering.add(src, received.get(src))
    want = at_once(kept, received, step, summing=summing)
    assert same_parcels(gathering.result(), want)
