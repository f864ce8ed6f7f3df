"""Modules as the bytes of a safetensors file, and back, without a copy of the tensors.

What is written here any safetensors reader reads; what is read must be as it is written here.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np

from hffm_flower.errors import ModuleError
from hffm_flower.modules import ModularState, ModuleKey, Tensor

_LENGTH_BYTES, _ALIGNED_TO = 8, 8
MOST_TABLE_BYTES: Final = 2**22
"""Longest table of tensors that is read."""


class TensorFile:
    """The file of ``state``, as parts in their order.

    Attributes:
        size: Of the file [byte].
        tensor_bytes: Of the tensors alone [byte].
        sizes: Of the tensors of each module [byte].

    Raises:
        ModuleError: A tensor is not float32.
    """

    def __init__(self, state: ModularState) -> None:
        table: dict[str, object] = {}
        tensors: list[memoryview] = []
        end = 0
        flat = {f"{key}/{name}": a for key, s in state.items() for name, a in s.items()}
        for name, array in sorted(flat.items()):
            if array.dtype != np.float32:
                raise ModuleError(f"{name} is {array.dtype}; only float32 travels")
            start, end = end, end + array.nbytes
            table[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [start, end]}
            tensors.append(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
        text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNED_TO)
        head = len(text).to_bytes(_LENGTH_BYTES, "little") + text
        self.parts: tuple[memoryview, ...] = (memoryview(head), *tensors)
        self.size = len(head) + end
        self.tensor_bytes = end
        self.sizes = {key: sum(a.nbytes for a in s.values()) for key, s in state.items()}


def blocks(files: Iterable[TensorFile], size: int) -> Iterator[list[memoryview]]:
    """The bytes of ``files``, one after the other, by ``size``; the last may be shorter.

    A block is in pieces, to be joined.
    """
    pending: list[memoryview] = []
    room = size
    for part in (part for file in files for part in file.parts):
        at = 0
        while at < len(part):
            piece = part[at : at + room]
            pending.append(piece)
            at += len(piece)
            room -= len(piece)
            if not room:
                yield pending
                pending, room = [], size
    if pending:
        yield pending


def read_tensors(file: memoryview) -> dict[ModuleKey, dict[str, Tensor]]:
    """The modules of a file; their tensors are views of it.

    Raises:
        ModuleError: It is not what `TensorFile` writes.
    """
    size = int.from_bytes(file[:_LENGTH_BYTES], "little")
    first = _LENGTH_BYTES + size
    if not 0 < size <= MOST_TABLE_BYTES or first > len(file):
        raise ModuleError(f"a table of {size} bytes in a file of {len(file)}")
    try:
        table = json.loads(bytes(file[_LENGTH_BYTES:first]))
        entries = [(name, *_entry(words)) for name, words in table.items()]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ModuleError(f"no table of tensors: {type(error).__name__}: {error}") from None
    state: dict[ModuleKey, dict[str, Tensor]] = defaultdict(dict)
    at = 0
    for name, shape, start, end in entries:
        if start != at or end - start != 4 * math.prod(shape) or first + end > len(file):
            raise ModuleError(f"tensor {name!r} is not where it should be")
        array = np.frombuffer(file, np.float32, math.prod(shape), first + start)
        key, _, tensor = name.rpartition("/")
        state[ModuleKey.parse(key)][tensor] = array.reshape(shape)
        at = end
    if first + at != len(file):
        raise ModuleError(f"{len(file) - first - at} bytes belong to no tensor")
    return dict(sorted(state.items()))


def _entry(words: Any) -> tuple[tuple[int, ...], int, int]:
    """Shape, start and end of a tensor."""
    shape, (start, end) = words["shape"], words["data_offsets"]
    numbers = (*shape, start, end)
    if words["dtype"] != "F32" or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"{words} is no float32 tensor")
    return tuple(shape), start, end
