"""Taking senders one at a time gives the bits of taking them all at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clients.gathering import Gathering
from hffm_flower.d2d import Parcel, PeerStep, incoming
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


@given(
    kept=messages,
    received=st.dictionaries(st.integers(1, 5), messages, max_size=5),
    silent=st.sets(st.integers(6, 8)),
    whole=st.sets(st.integers(1, 5)),
    summing=st.booleans(),
)
def test_gathering_is_incoming(
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
    want = incoming(kept, received, step, ME, summing=summing)
    assert same_parcels(gathering.result(), want)
