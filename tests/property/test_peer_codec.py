"""Whatever bytes come, the decoder gives good parcels or refuses; it never breaks."""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hffm_flower.d2d import Parcel
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
from hffm_flower.rpc.letters import Writer
from hffm_flower.rpc.tickets import NONCE_BYTES, tag_of
from tests.support.peers import FIRST, allowed_for, chunks_of, update_of

KEY = bytes(32)
ALLOWED = allowed_for(range(3))
GOOD = Writer().letter(
    Envelope(7, 3, FIRST, 1, 0), [Parcel.of(update_of(i), i) for i in (1, 2)], bytes(32)
)
PAYLOAD = b"".join(c.data for c in chunks_of(GOOD))
MAX = 4 * len(PAYLOAD)


def read(header: bytes, payload: bytes, *, mend: bool) -> tuple[Parcel, ...]:
    """Decode as a receiver does; ``mend`` lets the payload pass the checksum."""
    parsed, _ = parse_header(pb.Opening(header=header))
    if mend:
        parsed.nonce = bytes(NONCE_BYTES)
        parsed.tag = tag_of(KEY, parsed.nonce, [payload])
    check_header(parsed, ALLOWED, max_bytes=MAX)
    tag = tag_for(parsed, KEY)
    tag.add(payload)
    check_tag(parsed, tag)
    return read_parcels(parsed, payload, ALLOWED)


def check(parcels: tuple[Parcel, ...]) -> None:
    """What every parcel that was let through promises."""
    for parcel in parcels:
        for key, state in parcel.update.state.items():
            assert {f"{key}/{n}" for n in state} == ALLOWED.tensors[str(key)].keys()
            assert all(a.dtype == np.float32 and np.isfinite(a).all() for a in state.values())
            assert 0 <= parcel.update.mass[key] < math.inf
            assert parcel.behind[key].keys() <= ALLOWED.examples.keys()


def survives(header: bytes, payload: bytes, *, mend: bool) -> None:
    try:
        came = read(header, payload, mend=mend)
    except Refused:
        return
    check(came)


edits = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from("fid"), st.binary(min_size=1, max_size=9)),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, changes: list[tuple[int, str, bytes]]) -> bytes:
    """``data`` with bytes flipped, inserted and deleted."""
    out = bytearray(data)
    for where, kind, some in changes:
        at = where % (len(out) + 1)
        end = at if kind == "i" else at + len(some)
        out[at:end] = b"" if kind == "d" else some
    return bytes(out)


def test_the_good_message_is_read() -> None:
    assert len(read(GOOD.header, PAYLOAD, mend=False)) == 2


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_noise_is_refused_or_read(header: bytes, payload: bytes) -> None:
    survives(header, payload, mend=True)


@given(edits)
def test_a_damaged_header_is_refused_or_read(changes: list[tuple[int, str, bytes]]) -> None:
    survives(edited(GOOD.header, changes), PAYLOAD, mend=True)


@given(edits)
def test_a_damaged_payload_that_has_its_checksum_is_refused_or_read(
    changes: list[tuple[int, str, bytes]],
) -> None:
    survives(GOOD.header, edited(PAYLOAD, changes), mend=True)


@given(edits)
def test_a_damaged_payload_fails_its_checksum(changes: list[tuple[int, str, bytes]]) -> None:
    payload = edited(PAYLOAD, changes)
    if payload != PAYLOAD:
        with pytest.raises(Refused) as caught:
            read(GOOD.header, payload, mend=False)
        assert caught.value.verdict == Verdict.CHECKSUM


words = st.recursive(
    st.none() | st.integers(-(2**70), 2**70) | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
tensor = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F64", "BF16", "F8_E4M3", "I64", "", "f32"]) | words,
        "shape": st.lists(st.integers(-1, 2**64), max_size=4) | words,
        "data_offsets": st.lists(st.integers(-1, 2**64), max_size=3) | words,
    },
)
names = st.sampled_from(["adapter/a/w", "head/h/w", "prompt/p/w", "__metadata__", "w", "a/b/c/d"])


@given(st.dictionaries(names | st.text(max_size=8), tensor | words, max_size=4), st.binary())
@example({"adapter/a/w": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}, b"")
@example({"adapter/a/w": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}, b"ab")
def test_a_hostile_safetensors_header_is_refused_or_read(
    tensors: dict[str, object], data: bytes
) -> None:
    manifest = json.dumps(tensors).encode()
    payload = struct.pack("<Q", len(manifest)) + manifest + data
    header = pb.Header.FromString(GOOD.header)
    del header.parcels[1:]
    header.size = header.parcels[0].size = len(payload)
    if len(payload) <= MAX:
        survives(header.SerializeToString(), payload, mend=True)
