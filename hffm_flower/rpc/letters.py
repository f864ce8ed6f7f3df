"""Parcels as one message on the wire; `hffm_flower.rpc.codec` reads it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hffm_flower.d2d import Parcel
from hffm_flower.errors import PeerError
from hffm_flower.modules import ModuleKey
from hffm_flower.rpc import exchange_pb2 as pb
from hffm_flower.rpc.codec import CHUNK_BYTES, HEADER_BYTES, PROTOCOL, Envelope
from hffm_flower.rpc.tensors import TensorFile, blocks
from hffm_flower.rpc.tickets import KEY_BYTES, NONCE_BYTES, TAG_BYTES, seal, tag_of
from hffm_flower.rpc.wire import data_chunk


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that is ready to be sent, as often as it needs to be.

    Its tensors are those of the parcels, not copies: they must stay as they are.
    """

    header: bytes
    seal: bytes
    files: tuple[TensorFile, ...]
    modules: tuple[ModuleKey, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tensors of each module, all parcels together [byte]."""
        return tuple(sum(f.sizes.get(key, 0) for f in self.files) for key in self.modules)

    @property
    def payload_bytes(self) -> int:
        """Safetensors files [byte]."""
        return sum(f.size for f in self.files)

    @property
    def tensor_bytes(self) -> int:
        """Tensors in those files [byte]."""
        return sum(f.tensor_bytes for f in self.files)

    @property
    def total_bytes(self) -> int:
        """All of it, without the framing of gRPC [byte]."""
        return len(self.header) + len(self.seal) + self.payload_bytes

    def frames(self) -> Iterator[tuple[bytes, int]]:
        """Serialised chunks, each with how much of the payload is in it [byte].

        The opening, then the payload by at most `CHUNK_BYTES`.
        """
        opening = pb.Opening(header=self.header, seal=self.seal)
        yield pb.Chunk(opening=opening).SerializeToString(), 0
        for pieces in blocks(self.files, CHUNK_BYTES):
            yield data_chunk(pieces), sum(map(len, pieces))


class Writer:
    """Makes the letters of one step; parcels that share their tensors share their file.

    Args:
        dry: Do not look at the tensors' values: letters of the right size, not to be sent.
    """

    def __init__(self, *, dry: bool = False) -> None:
        self._dry = dry
        self._files: dict[tuple[tuple[ModuleKey, int], ...], tuple[Parcel, TensorFile]] = {}

    def letter(
        self, envelope: Envelope, parcels: Sequence[Parcel], key: bytes = bytes(KEY_BYTES)
    ) -> Letter:
        """One message of ``parcels``, sealed with the pair's ``key``.

        Raises:
            PeerError: Its header would be too large.
            ModuleError: A tensor is not float32.
        """
        files = tuple(map(self._file, parcels))
        nonce, tag = bytes(NONCE_BYTES), bytes(TAG_BYTES)
        if not self._dry:
            nonce = os.urandom(NONCE_BYTES)
            tag = tag_of(key, nonce, (part for file in files for part in file.parts))
        header = pb.Header(
            protocol=PROTOCOL,
            run=envelope.run,
            t=envelope.t,
            phase=pb.Phase.Name(envelope.turn.phase),
            segment=envelope.turn.segment,
            step=envelope.turn.step,
            src=envelope.src,
            dst=envelope.dst,
            size=sum(f.size for f in files),
            nonce=nonce,
            tag=tag,
            parcels=[_describe(p, f.size) for p, f in zip(parcels, files, strict=True)],
        ).SerializeToString(deterministic=True)
        if len(header) > HEADER_BYTES:
            raise PeerError(f"a header of {len(header)} bytes; at most {HEADER_BYTES} may be sent")
        keys = sorted({k for p in parcels for k in p.update.state})
        return Letter(header, seal(key, header), files, tuple(keys))

    def _file(self, parcel: Parcel) -> TensorFile:
        state = parcel.update.state
        same = tuple((key, id(state[key])) for key in sorted(state))
        if same not in self._files:
            self._files[same] = parcel, TensorFile(state)  # the parcel keeps its ids taken
        return self._files[same][1]


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
