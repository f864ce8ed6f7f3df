"""Tokens of frozen encoders, kept on disk and shared by all devices of a machine.

One file per item: ``<root>/<encoder fingerprint>/<xx>/<item digest>``, holding a checksum,
then per stream the values as float16 and the mask as bytes. Files appear whole, by a
rename, so any number of threads and processes may share a cache; a damaged one is
computed again. A hit and a miss give the same bits, since both pass through float16.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from hffm_flower.models.encoders.encoder import Stream, Tokens

MAGIC: Final = b"HFFM-TOKENS-1\n"
CHUNK: Final = 64  # items encoded between writes
FLOAT16_MAX: Final = 65504.0

logger = logging.getLogger(__name__)


class Digested(Protocol):
    """What is encoded, known by its content."""

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the content."""
        ...


Kind = TypeVar("Kind", bound=Digested)
Kind_contra = TypeVar("Kind_contra", bound=Digested, contravariant=True)


class Reader(Protocol[Kind_contra]):
    """What makes tokens that can be kept: an encoder, or layers behind encoders."""

    @property
    def streams(self) -> Mapping[str, Stream]:
        """Name of each output -> its shape."""
        ...

    @property
    def cacheable(self) -> bool:
        """Whether its outputs are worth keeping."""
        ...

    def fingerprint(self) -> str:
        """Hex SHA-256 of all that the outputs depend on."""
        ...

    def encode(self, items: Sequence[Kind_contra]) -> dict[str, Tokens]:
        """Tokens of every stream; an item's bits are its own."""
        ...


class FeatureCache:
    """Cache under one folder; it has no state of its own.

    An unwritable folder costs speed, not the run: it is logged, and tokens are computed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def features(self, encoder: Reader[Kind], items: Sequence[Kind]) -> dict[str, Tokens]:
        """Tokens of every stream, items in order; each distinct item is encoded once.

        Values of cacheable encoders are rounded to float16; an encoder that is not
        cacheable is simply run.
        """
        if not encoder.cacheable:
            return encoder.encode(items)
        folder = self._root / encoder.fingerprint()
        distinct = {item.digest: item for item in items}
        rows = {digest: row for row, digest in enumerate(distinct)}
        held = _Table(encoder, len(rows))
        missing = [d for d in distinct if not held.read(_path(folder, d), rows[d])]
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            encoded = encoder.encode([distinct[digest] for digest in chunk])
            for i, digest in enumerate(chunk):
                held.put(rows[digest], encoded, i)
                _write(_path(folder, digest), held.payload(rows[digest]))
        return held.tokens([rows[item.digest] for item in items])


class _Table:
    """Tokens of the distinct items of one call: float16 values and masks, by stream."""

    def __init__(self, encoder: Reader[Kind], items: int) -> None:
        streams = encoder.streams.items()
        self._values = {n: np.empty((items, s.tokens, s.width), np.float16) for n, s in streams}
        self._masks = {n: np.empty((items, s.tokens), np.uint8) for n, s in streams}
        self._size = sum(s.tokens * (2 * s.width + 1) for _, s in streams)

    def put(self, row: int, encoded: dict[str, Tokens], i: int) -> None:
        for name, values in self._values.items():
            exact = encoded[name].values[i].clamp(-FLOAT16_MAX, FLOAT16_MAX)
            values[row] = exact.numpy().astype(np.float16)
            self._masks[name][row] = encoded[name].mask[i].numpy()

    def payload(self, row: int) -> bytes:
        parts = (v[row].tobytes() + self._masks[n][row].tobytes() for n, v in self._values.items())
        return b"".join(parts)

    def read(self, path: Path, row: int) -> bool:
        """Fill ``row`` from a file; False where there is none, or not a sound one."""
        try:
            data = path.read_bytes()
        except OSError:
            return False
        body = memoryview(data)[len(MAGIC) + 4 :]
        sum_ = int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "little")
        if not data.startswith(MAGIC) or len(body) != self._size or zlib.crc32(body) != sum_:
            logger.warning("cached tokens in %s are damaged; computing them again", path)
            return False
        at = 0
        for name, values in self._values.items():
            at = _fill(values[row], body, at)
            at = _fill(self._masks[name][row], body, at)
        return True

    def tokens(self, rows: list[int]) -> dict[str, Tokens]:
        return {
            name: Tokens(
                torch.from_numpy(values[rows].astype(np.float32)),
                torch.from_numpy(self._masks[name][rows].astype(np.bool_)),
            )
            for name, values in self._values.items()
        }


def _fill(into: NDArray[np.float16] | NDArray[np.uint8], body: memoryview, at: int) -> int:
    flat = np.frombuffer(body, into.dtype, into.size, at)
    into[...] = flat.reshape(into.shape)
    return at + into.nbytes


def _path(folder: Path, digest: str) -> Path:
    return folder / digest[:2] / digest


def _write(path: Path, payload: bytes) -> None:
    data = MAGIC + zlib.crc32(payload).to_bytes(4, "little") + payload
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            temporary = file.name
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        logger.warning("cannot keep tokens in %s: %s", path.parent, error)
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
