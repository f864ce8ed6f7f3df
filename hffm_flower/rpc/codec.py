"""What a message between peers may be, and its parcels read back from it.

A message is a sealed header, which names every module, its mass and its contributors, and a
payload: the parcels' safetensors files one after the other. Every word is checked before it is
believed, and nothing is ever unpickled.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from hffm_flower.d2d import Parcel
from hffm_flower.errors import HffmError, PeerError
from hffm_flower.modules import ModularUpdate, ModuleKey, Tensor, shapes
from hffm_flower.rpc import exchange_pb2 as pb
from hffm_flower.rpc.tensors import read_tensors
from hffm_flower.rpc.tickets import NONCE_BYTES, PayloadTag

PROTOCOL: Final = 1
"""Version of `exchange.proto`; peers of another version are refused."""

CHUNK_BYTES: Final = 2**20
HEADER_BYTES: Final = 2**20
SLACK: Final = 1e-6
"""Relative rounding allowed where masses are added up."""


class Verdict(IntEnum):
    """What a receiver says of a message; `exchange.proto` explains them."""

    ACCEPTED = pb.ACCEPTED
    DUPLICATE = pb.DUPLICATE
    NOT_READY = pb.NOT_READY
    LATE = pb.LATE
    UNEXPECTED = pb.UNEXPECTED
    WRONG_PROTOCOL = pb.WRONG_PROTOCOL
    WRONG_RUN = pb.WRONG_RUN
    WRONG_ROUND = pb.WRONG_ROUND
    UNAUTHORISED = pb.UNAUTHORISED
    MALFORMED = pb.MALFORMED
    UNKNOWN_MODULE = pb.UNKNOWN_MODULE
    OVERWEIGHT = pb.OVERWEIGHT
    OVERSIZE = pb.OVERSIZE
    TRUNCATED = pb.TRUNCATED
    CHECKSUM = pb.CHECKSUM


class Refused(PeerError):
    """A message that is not taken, with the verdict that its sender is told."""

    def __init__(self, verdict: Verdict, detail: str) -> None:
        super().__init__(f"{verdict.name.lower()}: {detail}")
        self.verdict = verdict
        self.detail = detail


class Turn(NamedTuple):
    """A step of a round; later steps are larger."""

    phase: int
    segment: int
    step: int


class Envelope(NamedTuple):
    """Whose message it is, for whom, and of which step."""

    run: int
    t: int
    turn: Turn
    src: int
    dst: int


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the parcels of a round may hold.

    Attributes:
        layout: Layout of every module that may travel, as `hffm_flower.modules.shapes` says it.
        examples: Participant -> largest mass it can put behind a module; all participants.
    """

    layout: Mapping[str, str]
    examples: Mapping[int, float]
    tensors: Mapping[str, Mapping[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        tensors: dict[str, dict[str, str]] = {}
        for name, kind in self.layout.items():
            tensors.setdefault(name.rpartition("/")[0], {})[name] = kind
        object.__setattr__(self, "tensors", tensors)


def parse_header(opening: pb.Opening) -> tuple[pb.Header, Envelope]:
    """Read a header; who sent it is not known yet.

    Raises:
        Refused: OVERSIZE, MALFORMED or WRONG_PROTOCOL.
    """
    if len(opening.header) > HEADER_BYTES:
        raise Refused(Verdict.OVERSIZE, f"a header of {len(opening.header)} bytes")
    try:
        header = pb.Header.FromString(opening.header)
    except DecodeError as error:
        raise Refused(Verdict.MALFORMED, "the header is no header") from error
    if header.protocol != PROTOCOL:
        raise Refused(
            Verdict.WRONG_PROTOCOL, f"protocol {header.protocol}; this is protocol {PROTOCOL}"
        )
    turn = Turn(int(header.phase), header.segment, header.step)
    return header, Envelope(header.run, header.t, turn, header.src, header.dst)


def check_header(header: pb.Header, allowed: Allowed, *, max_bytes: int) -> None:
    """Whether a header announces what may be read at all.

    Raises:
        Refused: OVERSIZE, MALFORMED, UNKNOWN_MODULE or OVERWEIGHT.
    """
    if header.size > max_bytes:
        raise Refused(Verdict.OVERSIZE, f"{header.size} bytes; at most {max_bytes} are taken")
    if sum(p.size for p in header.parcels) != header.size:
        raise Refused(Verdict.MALFORMED, "the sizes of the parcels do not add up to the message's")
    for parcel in header.parcels:
        names = [m.key for m in parcel.modules]
        if len(set(names)) != len(names):
            raise Refused(Verdict.MALFORMED, "a parcel names a module twice")
        for module in parcel.modules:
            _check_module(module, allowed)


def tag_for(header: pb.Header, key: bytes) -> PayloadTag:
    """What the payload behind ``header`` is to be passed through as it comes.

    Raises:
        Refused: CHECKSUM: the header's nonce is none.
    """
    if len(header.nonce) != NONCE_BYTES:
        raise Refused(Verdict.CHECKSUM, f"a nonce of {len(header.nonce)} bytes")
    return PayloadTag(key, header.nonce)


def check_tag(header: pb.Header, found: PayloadTag) -> None:
    """Whether the payload that came is the one that the header was sealed for.

    Raises:
        Refused: CHECKSUM.
    """
    if not hmac.compare_digest(found.value(), header.tag):
        raise Refused(Verdict.CHECKSUM, "the payload is not the one that was sealed")


def read_parcels(
    header: pb.Header, payload: bytes | memoryview, allowed: Allowed
) -> tuple[Parcel, ...]:
    """The parcels of a message whose header and tag were checked.

    Their tensors lie in ``payload``.

    Raises:
        Refused: MALFORMED or UNKNOWN_MODULE.
    """
    parcels = []
    start = 0
    view = memoryview(payload)
    for parcel in header.parcels:
        parcels.append(_read(parcel, view[start : start + parcel.size], allowed))
        start += parcel.size
    return tuple(parcels)


def _check_module(module: pb.Module, allowed: Allowed) -> None:
    if module.key not in allowed.tensors:
        raise Refused(Verdict.UNKNOWN_MODULE, f"module {module.key!r} does not travel in this run")
    if len(module.devices) != len(module.masses) or len(set(module.devices)) != len(module.devices):
        raise Refused(Verdict.MALFORMED, f"{module.key}: its devices and masses do not fit")
    if not all(math.isfinite(m) and m >= 0 for m in (module.mass, *module.masses)):
        raise Refused(Verdict.MALFORMED, f"{module.key}: a mass is negative or not finite")
    if not math.isclose(sum(module.masses), module.mass, rel_tol=SLACK):
        raise Refused(Verdict.MALFORMED, f"{module.key}: masses do not add up to {module.mass}")
    for device, mass in zip(module.devices, module.masses, strict=True):
        if device not in allowed.examples:
            raise Refused(
                Verdict.UNAUTHORISED, f"{module.key} holds device {device}, which takes no part"
            )
        if mass > allowed.examples[device] * (1 + SLACK):
            raise Refused(
                Verdict.OVERWEIGHT,
                f"{module.key}: mass {mass} of device {device} with {allowed.examples[device]}",
            )


def _read(parcel: pb.Parcel, file: memoryview, allowed: Allowed) -> Parcel:
    try:
        state = read_tensors(file)
        if sorted(map(str, state)) != sorted(m.key for m in parcel.modules):
            raise Refused(Verdict.MALFORMED, "the header names other modules than the payload")
        found = shapes(state)
        wanted = {n: s for m in parcel.modules for n, s in allowed.tensors[m.key].items()}
        if found != wanted:
            odd = sorted(dict(found.items() ^ wanted.items()))
            raise Refused(Verdict.UNKNOWN_MODULE, f"other tensors than the run's: {odd[:3]}")
        if not all(_is_finite(a) for s in state.values() for a in s.values()):
            raise Refused(Verdict.MALFORMED, "a tensor is not finite")
        mass = {ModuleKey.parse(m.key): m.mass for m in parcel.modules}
        behind = {
            ModuleKey.parse(m.key): dict(zip(m.devices, m.masses, strict=True))
            for m in parcel.modules
        }
        return Parcel(ModularUpdate(state, mass), behind, parcel.intact)
    except Refused:
        raise
    except (HffmError, ValueError, TypeError) as error:
        raise Refused(Verdict.MALFORMED, f"no safetensors file of modules: {error}") from error


def _is_finite(array: Tensor) -> bool:
    """Whether all values are, looked at piece by piece."""
    flat = array.reshape(-1)
    pieces = range(0, flat.size, CHUNK_BYTES)
    return all(np.isfinite(flat[at : at + CHUNK_BYTES]).all() for at in pieces)
