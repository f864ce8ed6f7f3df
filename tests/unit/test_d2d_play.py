"""Single D2D steps, single faults and single settlements, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hffm_flower.d2d import (
    Fault,
    Parcel,
    PeerStep,
    Plan,
    incoming,
    join,
    outgoing,
    play,
    settle,
    uploads_of,
)
from hffm_flower.d2d.play import Sent
from hffm_flower.errors import ConfigError, ModuleError
from hffm_flower.modules import ModularUpdate, ModuleKey

A, B = (ModuleKey.parse(text) for text in ("adapter/a", "head/b"))


def update(value: float, mass: float, *keys: ModuleKey) -> ModularUpdate:
    return ModularUpdate.of({k: {"w": np.full(2, value, np.float32)} for k in keys}, mass)


def parcel(device: int, mass: float, *keys: ModuleKey) -> Parcel:
    return Parcel.of(update(float(device), mass, *keys), device)


def value(of: Parcel, key: ModuleKey = A) -> float:
    return float(of.update.state[key]["w"][0])


TO_TWO = PeerStep({0: {1: {A: 0.25}, 2: {A: 0.5, B: 1.0}}})
UP = PeerStep({1: {0: {A: 1.0}}, 2: {0: {A: 1.0}}})
STAR = Plan("relay", (), (UP,), {0: (A,)}, {})
THIRD = {A: 1 / 3}
SWAP = PeerStep({0: {1: THIRD}, 1: {0: THIRD, 2: THIRD}, 2: {1: THIRD}})
LINE = Plan("gossip", (), (SWAP,) * 9, {0: (A,)}, {A: ((0, 1, 2),)})
THREE = {d: update(float(d), d + 1.0, A) for d in range(3)}
OWN = {d: u.mass for d, u in THREE.items()}


def test_a_module_of_mass_0_is_not_trained() -> None:
    both = ModularUpdate(update(1.0, 1.0, A, B).state, {A: 2.0, B: 0.0})
    own = Parcel.of(both, 4)
    assert own.behind == {A: {4: 2.0}}
    assert list(own.update.state) == [A]
    assert settle(STAR, {}, {4: both.mass}).missing == {4: (A,)}


def test_join_adds_masses_and_who_is_behind() -> None:
    joined = join([parcel(1, 3.0, A, B), parcel(2, 1.0, A)])
    assert joined.update.mass == {A: 4.0, B: 3.0}
    assert joined.behind == {A: {1: 3.0, 2: 1.0}, B: {1: 3.0}}
    assert value(joined) == 1.25
    assert joined.intact
    one = parcel(1, 3.0, A)
    assert join([one]).update is one.update
    with pytest.raises(ModuleError, match="cannot merge adapter/a"):
        join([one, Parcel.of(ModularUpdate.of({A: {"v": np.ones(2, np.float32)}}, 1.0), 2)])


def test_the_thinnest_masses_still_average() -> None:
    thin = join([parcel(1, 3e-200, A), parcel(2, 1e-200, A)])
    assert value(thin) == pytest.approx(1.25, rel=1e-6)
    assert thin.update.mass[A] == pytest.approx(4e-200)


def test_outgoing_parts_the_mass() -> None:
    held = (parcel(0, 8.0, A, B), parcel(3, 4.0, A))
    kept, messages = outgoing(held, TO_TWO, 0, summing=True)
    assert [p.update.mass for p in kept] == [{A: 3.0}]
    assert list(messages) == [1, 2]
    assert messages[1][0].behind == {A: {0: 2.0, 3: 1.0}}
    assert messages[2][0].update.mass == {A: 6.0, B: 8.0}
    kept, messages = outgoing(held, TO_TWO, 0, summing=False)
    assert [p.update.mass for p in kept] == [{A: 2.0}, {A: 1.0}]
    assert [p.update.mass for p in messages[2]] == [{A: 4.0, B: 8.0}, {A: 2.0}]
    assert outgoing(held, TO_TWO, 1, summing=True) == (held, {})
    # Whoever holds nothing says so, lest the receiver wait.
    assert outgoing((), TO_TWO, 0, summing=True) == ((), {1: (), 2: ()})


def test_nothing_is_kept_of_what_is_sent_whole() -> None:
    tenths = PeerStep({0: {d: {A: 0.1} for d in range(1, 11)}})
    kept, messages = outgoing((parcel(0, 7.0, A),), tenths, 0, summing=True)
    assert kept == ()
    assert len(messages) == 10


def test_incoming_is_in_order_and_notes_what_is_missing() -> None:
    got = {2: (parcel(2, 1.0, A),), 1: (parcel(1, 1.0, A),)}
    (held,) = incoming((parcel(0, 1.0, A),), got, UP, 0, summing=True)
    assert (value(held), held.intact, list(held.behind[A])) == (1.0, True, [0, 1, 2])
    apart = incoming((parcel(0, 1.0, A),), got, UP, 0, summing=False)
    assert [value(p) for p in apart] == [0.0, 1.0, 2.0]
    (held,) = incoming((parcel(0, 1.0, A),), {1: ()}, UP, 0, summing=True)
    assert (held.behind, held.intact) == ({A: {0: 1.0}}, False)
    for summing in (True, False):
        (held,) = incoming((), {}, UP, 0, summing=summing)
        assert (held.behind, held.intact) == ({}, False)
        assert incoming((), {1: (), 2: ()}, UP, 0, summing=summing) == ()
    # A stranger's message is none of this step.
    assert incoming((), {1: (), 2: (), 9: got[2]}, UP, 0, summing=True) == ()
    assert incoming((), {9: got[2]}, UP, 5, summing=True) == ()


@pytest.mark.parametrize("summing", [True, False])
def test_relays_never_merge_overlapping_parcels(summing: bool) -> None:
    twice = {1: (parcel(7, 1.0, A),), 2: (join([parcel(7, 1.0, A), parcel(2, 1.0, A)]),)}
    (held,) = incoming((), twice, UP, 0, summing=summing)
    assert held.behind == {A: {7: 1.0}}
    assert not held.intact
    # In gossip everybody is soon behind everything.
    (held,) = incoming((parcel(0, 1.0, A),), {1: (parcel(0, 1.0, A),)}, SWAP, 0, summing=True)
    assert held.behind == {A: {0: 2.0}}


FAULTS = {
    Fault.DEAD_BEFORE: ([2], {0, 2}),
    Fault.DEAD_DURING: ([1, 2], {0, 2}),
    Fault.DEAD_AFTER: ([1, 2], {0, 1, 2}),
    Fault.SLOW: ([1, 2], {0, 2}),
    Fault.DUPLICATE: ([1, 1, 2], {0, 1, 2}),
    Fault.HEAD_DEAD: ([1, 2], {0, 1, 2}),
}


@pytest.mark.parametrize("fault", list(Fault))
def test_faults_of_a_leaf(fault: Fault) -> None:
    played = play(THREE, STAR, faults={1: fault})
    senders, counted = FAULTS[fault]
    assert [sent.src for sent in played.sent] == senders
    (head,) = uploads_of(played, STAR)[0]
    assert head.behind[A].keys() == counted
    gone = fault not in (Fault.SLOW, Fault.DUPLICATE)
    assert played.dead == ({1} if gone else set())
    settled = settle(STAR, {0: (head,)}, {d: OWN[d] for d in played.held})
    assert settled.missing == ({1: (A,)} if fault == Fault.SLOW else {})


def test_who_is_told_of_messages_keeps_them_alone() -> None:
    told: list[Sent] = []
    played = play(THREE, LINE, tell=told.append)
    want = play(THREE, LINE)
    assert played.sent == ()
    assert [(s.step, s.src, s.dst) for s in told] == [(s.step, s.src, s.dst) for s in want.sent]
    assert told
    assert played.held.keys() == want.held.keys()


def test_the_first_receiver_of_a_dying_device_is_served() -> None:
    played = play(THREE, LINE, faults={1: Fault.DEAD_DURING})
    assert [(s.src, s.dst) for s in played.sent if s.step == 0] == [(0, 1), (1, 0), (2, 1)]
    assert played.dead == {1}
    # 0 had it in step 0, and misses it in the next.
    assert 1 in played.held[0][0].behind[A]
    assert not played.held[0][0].intact
    assert 1 not in played.held[2][0].behind[A]


def test_a_head_can_only_die_before_or_after() -> None:
    for fault in Fault:
        played = play(THREE, STAR, faults={0: fault})
        gone = fault in (Fault.DEAD_BEFORE, Fault.HEAD_DEAD)
        assert (0 in played.dead, 0 in uploads_of(played, STAR)) == (gone, not gone)
        if gone:
            own = {d: OWN[d] for d in (1, 2)}
            assert settle(STAR, uploads_of(played, STAR), own).missing == {1: (A,), 2: (A,)}


def test_a_device_without_an_update_counts_as_dead() -> None:
    played = play({d: THREE[d] for d in (0, 2)}, STAR)
    assert played.dead == {1}
    assert uploads_of(played, STAR)[0][0].behind == {A: {0: 1.0, 2: 3.0}}
    with pytest.raises(ConfigError, match=r"faults of unknown devices \[8\]; known: \[0, 1, 2\]"):
        play(THREE, STAR, faults={8: Fault.SLOW})


def test_only_what_is_asked_for_is_uploaded() -> None:
    updates = {0: update(1.0, 1.0, A, B)}
    (only,) = uploads_of(play(updates, STAR), STAR)[0]
    assert list(only.update.state) == [A]
    assert uploads_of(play({0: update(1.0, 1.0, B)}, STAR), STAR) == {0: ()}


def test_gossip_stands_for_its_group_with_the_exact_mass() -> None:
    uploads = uploads_of(play(THREE, LINE), LINE)
    assert uploads[0][0].update.mass[A] == pytest.approx(2.0, rel=0.1)
    settled = settle(LINE, uploads, OWN)
    assert settled.accepted[0].behind == {A: {0: 1.0, 1: 2.0, 2: 3.0}}
    assert settled.accepted[0].update.mass == {A: 6.0}
    assert settled.missing == {}


def test_gossip_is_refused_whole() -> None:
    uploads = uploads_of(play(THREE, LINE), LINE)
    everyone = {d: (A,) for d in range(3)}
    silent = settle(LINE, uploads, {d: OWN[d] for d in (0, 2)})
    assert (silent.accepted, silent.missing) == ((), {0: (A,), 2: (A,)})
    slow = uploads_of(play(THREE, LINE, faults={2: Fault.SLOW}), LINE)
    assert settle(LINE, slow, OWN).missing == everyone
    assert settle(LINE, {9: uploads[0]}, OWN).missing == everyone
    assert settle(LINE, {}, OWN).missing == everyone
    twice = settle(LINE, {0: uploads[0], 1: uploads[0]}, OWN)
    assert len(twice.accepted) == 1


def test_relayed_modules_that_overlap_are_left_out() -> None:
    first = join([parcel(0, 1.0, A), parcel(1, 2.0, A)])
    second = join([parcel(1, 2.0, A, B), parcel(2, 3.0, A)])
    own = {0: {A: 1.0}, 1: {A: 2.0, B: 2.0}, 2: {A: 3.0}}
    settled = settle(STAR, {5: (second,), 4: (first,)}, own)
    assert [dict(p.behind) for p in settled.accepted] == [{A: {0: 1.0, 1: 2.0}}, {B: {1: 2.0}}]
    assert settled.missing == {2: (A,)}
