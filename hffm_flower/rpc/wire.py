"""`Push` on the wire, as `exchange.proto` says, without a detour of the payload.

Large payloads spend most of their time in being copied into protobuf messages and out of them
again. A chunk of data is a tag, a length and the data, so it is made and read here directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hffm_flower.rpc import exchange_pb2 as pb

SERVICE: Final = "hffm_flower.rpc.PeerExchange"
PUSH: Final = f"/{SERVICE}/Push"
_DATA: Final = 0x12
"""Tag of field 2, ``bytes data``."""
_LONGEST: Final = 5
"""Bytes of the longest length that is read here."""

Incoming = pb.Opening | memoryview | None
"""An opening, data, or neither."""


def data_chunk(pieces: Sequence[bytes | memoryview]) -> bytes:
    """A serialised `Chunk` whose data are ``pieces``, one after the other."""
    head = bytearray([_DATA])
    left = sum(map(len, pieces))
    while left > 0x7F:
        head.append(left & 0x7F | 0x80)
        left >>= 7
    head.append(left)
    return b"".join((head, *pieces))


def read_chunk(raw: bytes) -> Incoming:
    """What a serialised `Chunk` holds; data are a view of ``raw``."""
    start, size = _data_head(raw)
    if start and start + size == len(raw):
        return memoryview(raw)[start:]
    chunk = pb.Chunk.FromString(raw)
    kind = chunk.WhichOneof("part")
    if kind == "data":
        return memoryview(chunk.data)
    return chunk.opening if kind == "opening" else None


def as_is(raw: bytes) -> bytes:
    """The serialiser of what is serialised already."""
    return raw


def _data_head(raw: bytes) -> tuple[int, int]:
    """Where the data begin, and their length; 0: this is no plain chunk of data."""
    if raw[:1] != bytes([_DATA]):
        return 0, 0
    size = 0
    for place, byte in enumerate(raw[1 : 1 + _LONGEST]):
        size |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return place + 2, size
    return 0, 0
