from __future__ import annotations

import numpy as np
import pytest

from hffm_flower.d2d import Parcel
from hffm_flower.errors import PeerError
from hffm_flower.modules import ModularUpdate
from hffm_flower.rpc import codec, letters
from hffm_flower.rpc import exchange_pb2 as pb
from hffm_flower.rpc.codec import (
    Envelope,
    Refused,
    Verdict,
    check_header,
    check_tag,
    parse_header,
    read_parcels,
    tag_for,
)
from hffm_flower.rpc.letters import Letter, Writer
from hffm_flower.rpc.tickets import is_sealed
from tests.support.memory import A, H
from tests.support.peers import FIRST, allowed_for, chunks_of, same_parcels, update_of

KEY = bytes(32)
ENVELOPE = Envelope(2**64 - 1, 3, FIRST, 1, 0)
ALLOWED = allowed_for(range(3))


def read(letter: Letter) -> tuple[Parcel, ...]:
    first, *rest = chunks_of(letter)
    header, envelope = parse_header(first.opening)
    assert envelope == ENVELOPE
    assert is_sealed(KEY, first.opening.header, first.opening.seal)
    check_header(header, ALLOWED, max_bytes=10_000)
    tag = tag_for(header, KEY)
    for chunk in rest:
        tag.add(chunk.data)
    check_tag(header, tag)
    return read_parcels(header, b"".join(c.data for c in rest), ALLOWED)


MIXED = Parcel(
    ModularUpdate(update_of(1).state, dict.fromkeys(update_of(1).state, 3.7)),
    {k: {0: 1.5, 2: 2.2} for k in update_of(1).state},
    False,
)
MESSAGES = {
    "nothing": (),
    "one": (Parcel.of(update_of(1), 1),),
    "several": (Parcel.of(update_of(1), 1), MIXED, Parcel.of(update_of(2, (H,)), 2)),
    "only that something is missing": (Parcel(ModularUpdate({}, {}), {}, False),),
    "published": (Parcel(ModularUpdate.of(update_of(1).state, 0.0), {}),),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_what_is_written_is_read_to_the_bit(name: str) -> None:
    parcels = MESSAGES[name]
    came = read(Writer().letter(ENVELOPE, parcels, KEY))
    if name == "published":
        assert {k: dict(v) for k, v in came[0].behind.items()} == {
            k: {} for k in update_of(1).state
        }
        came = (Parcel(came[0].update, {}, came[0].intact),)
    assert same_parcels(came, parcels)


def test_a_payload_goes_in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "CHUNK_BYTES", 100)
    letter = Writer().letter(ENVELOPE, MESSAGES["several"], KEY)
    sizes = [len(c.data) for c in chunks_of(letter)[1:]]
    assert max(sizes) == 100
    assert sum(sizes) == letter.payload_bytes
    assert same_parcels(read(letter), MESSAGES["several"])


def test_shares_of_one_state_are_packed_once() -> None:
    own = Parcel.of(update_of(1), 1)
    writer = Writer()
    half, third = (own.scaled(dict.fromkeys(own.update.state, s)) for s in (0.5, 0.3))
    one, two = (writer.letter(ENVELOPE, [p], KEY) for p in (half, third))
    assert one.files[0] is two.files[0]
    assert one.header != two.header
    (part,) = writer.letter(ENVELOPE, [own.scaled({A: 1.0})], KEY).files
    assert part.size < one.files[0].size


def test_a_header_may_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    letter = Writer().letter(ENVELOPE, MESSAGES["one"], KEY)
    monkeypatch.setattr(codec, "HEADER_BYTES", 10)
    monkeypatch.setattr(letters, "HEADER_BYTES", 10)
    with pytest.raises(PeerError, match="at most 10"):
        Writer().letter(ENVELOPE, MESSAGES["one"], KEY)
    with pytest.raises(Refused) as caught:
        parse_header(pb.Opening(header=letter.header))
    assert caught.value.verdict == Verdict.OVERSIZE


def test_arrays_of_any_layout_travel() -> None:
    turned = np.arange(40, dtype=np.float32).reshape(8, 5).T
    parcel = Parcel.of(ModularUpdate.of({A: {"w": turned, "s": np.array(3, np.float32)}}, 1.0), 1)
    letter = Writer().letter(ENVELOPE, [parcel], KEY)
    layout = {"adapter/a/w": "float32[5,8]", "adapter/a/s": "float32[]"}
    header, _ = parse_header(pb.Opening(header=letter.header))
    allowed = codec.Allowed(layout, {1: 1.0})
    payload = b"".join(c.data for c in chunks_of(letter)[1:])
    (came,) = read_parcels(header, payload, allowed)
    assert np.array_equal(came.update.state[A]["w"], turned)
    assert came.update.state[A]["s"].shape == ()
