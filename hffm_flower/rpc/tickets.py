"""Who may speak to whom in one edge round, without asking the edge again.

The edge draws one secret a run and gives every participant a `Ticket`: the addresses of its
cluster, and one key for every pair that it belongs to. A key is
HMAC-SHA256(secret, run, t, lower index, higher index), so a device can neither make another
pair's key nor use one in another run or round. Every header is sealed with its pair's key, and
holds the payload's tag.

Seals prove who sent a message to its receiver, and that no header was altered; they hide
nothing: that is what TLS is for. They do not bind a member to the truth of what it sends.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

from hffm_flower.errors import ProtocolError

KEY_BYTES = 32
NONCE_BYTES, TAG_BYTES = 12, 16


@dataclass(frozen=True, slots=True)
class Seat:
    """Another device of the cluster.

    Attributes:
        address: ``host:port`` where it listens.
        key: What the two seal their headers with.
    """

    address: str
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the edge tells one device about its cluster, for one edge round.

    Attributes:
        run: Flower's id of the run.
        t: Edge round.
        index: The device that it is for.
        seats: All others that take part.
    """

    run: int
    t: int
    index: int
    seats: Mapping[int, Seat]

    def __post_init__(self) -> None:
        if not (0 <= self.run < 2**64 and 0 <= self.t < 2**32 and 0 <= self.index < 2**32):
            raise ProtocolError(f"a ticket of run {self.run}, t {self.t} for {self.index}")
        if self.index in self.seats:
            raise ProtocolError(f"the ticket of device {self.index} has a seat for itself")
        for index, seat in self.seats.items():
            if len(seat.key) != KEY_BYTES or not seat.address or not 0 <= index < 2**32:
                raise ProtocolError(f"the ticket's seat of device {index} is no seat")

    def to_json(self) -> str:
        """Compact text, for the message that asks a device to train. It is a secret."""
        seats = {str(i): [s.address, s.key.hex()] for i, s in sorted(self.seats.items())}
        words = {"run": self.run, "t": self.t, "index": self.index, "seats": seats}
        return json.dumps(words, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read `to_json` back.

        Raises:
            ProtocolError: It is no ticket.
        """
        try:
            words = json.loads(text)
            seats = {
                int(i): Seat(str(address), bytes.fromhex(key))
                for i, (address, key) in words["seats"].items()
            }
            return cls(int(words["run"]), int(words["t"]), int(words["index"]), seats)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProtocolError(f"not a ticket: {type(error).__name__}") from None


def issue(secret: bytes, addresses: Mapping[int, str], *, run: int, t: int) -> dict[int, Ticket]:
    """One ticket for every participant of a cluster; called by the edge.

    Args:
        secret: At least 32 random bytes that the edge draws once a run (`secrets.token_bytes`).
        addresses: Participant -> where its peers reach it.
        run: Flower's id of the run.
        t: Edge round.

    Raises:
        ProtocolError: The secret is short, or an address is empty.
    """
    if len(secret) < KEY_BYTES:
        raise ProtocolError(f"a secret of {len(secret)} bytes; at least {KEY_BYTES} are needed")

    def key(a: int, b: int) -> bytes:
        words = f"hffm peers\x1f{run}\x1f{t}\x1f{min(a, b)}\x1f{max(a, b)}"
        return hmac.digest(secret, words.encode(), hashlib.sha256)

    return {
        me: Ticket(
            run, t, me, {i: Seat(addresses[i], key(me, i)) for i in sorted(addresses) if i != me}
        )
        for me in sorted(addresses)
    }


def seal(key: bytes, header: bytes) -> bytes:
    """The seal of a header under a pair's key."""
    return hmac.digest(key, header, hashlib.sha256)


def is_sealed(key: bytes, header: bytes, found: bytes) -> bool:
    """Whether ``found`` is the seal of ``header``; takes the same time either way."""
    return hmac.compare_digest(seal(key, header), found)


class PayloadTag:
    """The tag of a payload that comes in parts: AES-GCM of no text with the payload beside it.

    An order of magnitude faster than a hash of it.

    Args:
        key: The pair's; the tag has a key of its own, derived from it.
        nonce: `NONCE_BYTES` random bytes, other ones for every payload.
    """

    def __init__(self, key: bytes, nonce: bytes) -> None:
        own = hmac.digest(key, b"hffm peers payload", hashlib.sha256)
        self._gcm = Cipher(AES(own), GCM(nonce)).encryptor()

    def add(self, part: bytes | memoryview) -> None:
        """The next part."""
        self._gcm.authenticate_additional_data(part)

    def value(self) -> bytes:
        """The tag, once all parts are in."""
        self._gcm.finalize()
        return self._gcm.tag


def tag_of(key: bytes, nonce: bytes, payload: Iterable[bytes | memoryview]) -> bytes:
    """The `PayloadTag` of a payload that is here whole, in parts."""
    tag = PayloadTag(key, nonce)
    for part in payload:
        tag.add(part)
    return tag.value()
