"""Parcels as one message on the wire, and back; every word is checked before it is believed.

A message is a sealed header, which names every module, its mass and its contributors, and a
payload: the parcels' safetensors files one after the other. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from hffm_flower.d2d import Parcel
from hffm_flower.errors import HffmError, PeerError
from hffm_flower.modules import ModularUpdate, ModuleKey, shapes
from hffm_flower.records import from_bytes, to_bytes
from hffm_flower.rpc import exchange_pb2 as pb
from hffm_flower.rpc.tickets import seal

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


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that is ready to be sent, as often as it needs to be."""

    header: bytes
    seal: bytes
    files: tuple[bytes, ...]
    modules: tuple[ModuleKey, ...]

    @property
    def payload_bytes(self) -> int:
        return sum(map(len, self.files))

    def chunks(self) -> Iterator[pb.Chunk]:
        """The opening, then the payload by at most `CHUNK_BYTES`."""
        yield pb.Chunk(opening=pb.Opening(header=self.header, seal=self.seal))
        for file in self.files:
            for start in range(0, len(file), CHUNK_BYTES):
                yield pb.Chunk(data=file[start : start + CHUNK_BYTES])


class Writer:
    """Makes the letters of one step; parcels that share their tensors share their bytes."""

    def __init__(self) -> None:
        self._files: dict[tuple[tuple[ModuleKey, int], ...], tuple[Parcel, bytes]] = {}

    def letter(self, envelope: Envelope, parcels: Sequence[Parcel], key: bytes) -> Letter:
        """One message of ``parcels``, sealed with the pair's ``key``.

        Raises:
            PeerError: Its header would be too large.
        """
        files = tuple(map(self._file, parcels))
        sha = hashlib.sha256()
        for file in files:
            sha.update(file)
        header = pb.Header(
            protocol=PROTOCOL,
            run=envelope.run,
            t=envelope.t,
            phase=pb.Phase.Name(envelope.turn.phase),
            segment=envelope.turn.segment,
            step=envelope.turn.step,
            src=envelope.src,
            dst=envelope.dst,
            size=sum(map(len, files)),
            sha256=sha.digest(),
            parcels=[_describe(p, len(f)) for p, f in zip(parcels, files, strict=True)],
        ).SerializeToString(deterministic=True)
        if len(header) > HEADER_BYTES:
            raise PeerError(f"a header of {len(header)} bytes; at most {HEADER_BYTES} may be sent")
        keys = sorted({k for p in parcels for k in p.update.state})
        return Letter(header, seal(key, header), files, tuple(keys))

    def _file(self, parcel: Parcel) -> bytes:
        state = parcel.update.state
        same = tuple((key, id(state[key])) for key in sorted(state))
        if same not in self._files:
            self._files[same] = parcel, to_bytes(state)  # the parcel keeps its ids taken
        return self._files[same][1]


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


def read_parcels(header: pb.Header, payload: bytes, allowed: Allowed) -> tuple[Parcel, ...]:
    """The parcels of a message whose header was checked.

    Raises:
        Refused: CHECKSUM, MALFORMED or UNKNOWN_MODULE.
    """
    if hashlib.sha256(payload).digest() != header.sha256:
        raise Refused(Verdict.CHECKSUM, "the payload is not the one that was sealed")
    parcels = []
    start = 0
    for parcel in header.parcels:
        parcels.append(_read(parcel, payload[start : start + parcel.size], allowed))
        start += parcel.size
    return tuple(parcels)


def _describe(parcel: Parcel, size: int) -> pb.Parcel:
    modules = []
    for key in sorted(parcel.update.state):
        behind = sorted(parcel.behind.get(key, {}).items())
        modules.append(
            pb.Module(
                key=str(key),
                mass=parcel.update.mass[key],
                devices=[device for device, _ in behind],
                masses=[mass for _, mass in behind],
            )
        )
    return pb.Parcel(size=size, intact=parcel.intact, modules=modules)


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


def _read(parcel: pb.Parcel, file: bytes, allowed: Allowed) -> Parcel:
    try:
        state = from_bytes(file)
        if sorted(map(str, state)) != sorted(m.key for m in parcel.modules):
            raise Refused(Verdict.MALFORMED, "the header names other modules than the payload")
        found = shapes(state)
        wanted = {n: s for m in parcel.modules for n, s in allowed.tensors[m.key].items()}
        if found != wanted:
            odd = sorted(dict(found.items() ^ wanted.items()))
            raise Refused(Verdict.UNKNOWN_MODULE, f"other tensors than the run's: {odd[:3]}")
        if not all(np.isfinite(a).all() for s in state.values() for a in s.values()):
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
