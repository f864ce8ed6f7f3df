"""The files of tensors are safetensors files, and nothing else is read as one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hffm_flower.errors import ModuleError
from hffm_flower.modules import ModularState
from hffm_flower.records import from_bytes, to_bytes
from hffm_flower.rpc import exchange_pb2 as pb
from hffm_flower.rpc.tensors import MOST_TABLE_BYTES, TensorFile, blocks, read_tensors
from hffm_flower.rpc.wire import data_chunk, read_chunk
from tests.support.memory import A, H

STATES: dict[str, ModularState] = {
    "nothing": {},
    "any layout": {
        H: {"t": np.arange(6, dtype=np.float32).reshape(2, 3).T, "é": np.array(3, np.float32)},
        A: {"empty": np.zeros((0, 4), np.float32), "w": np.ones(5, np.float32)},
    },
}


def whole(state: ModularState, size: int = 2**20) -> bytes:
    return b"".join(b"".join(pieces) for pieces in blocks([TensorFile(state)], size))


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("size", [1, 7, 2**20])
def test_it_is_what_safetensors_writes(name: str, size: int) -> None:
    state, file = STATES[name], TensorFile(STATES[name])
    assert whole(state, size) == to_bytes(state)
    assert file.size == len(to_bytes(state))
    assert file.tensor_bytes == sum(a.nbytes for s in state.values() for a in s.values())


@pytest.mark.parametrize("name", STATES)
def test_it_is_read_as_safetensors_reads_it(name: str) -> None:
    data = whole(STATES[name])
    came, want = read_tensors(memoryview(data)), from_bytes(data)
    assert to_bytes(came) == to_bytes(want)
    assert {n: a.shape for s in came.values() for n, a in s.items()} == {
        n: a.shape for s in want.values() for n, a in s.items()
    }


def test_tensors_are_not_copied() -> None:
    data = bytearray(whole({A: {"w": np.zeros(4, np.float32)}}))
    came = read_tensors(memoryview(data))
    data[-4:] = np.array([7], np.float32).tobytes()
    assert came[A]["w"][-1] == 7


def test_other_numbers_do_not_travel() -> None:
    doubles: Any = np.zeros(3)
    with pytest.raises(ModuleError, match="only float32 travels"):
        TensorFile({A: {"w": doubles}})


def table(**changes: Any) -> dict[str, Any]:
    return {"adapter/a/w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def file_of(head: object, tensors: bytes = bytes(8)) -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + tensors


WRONG: dict[str, Callable[[], bytes]] = {
    "nothing at all": lambda: b"",
    "no table": lambda: bytes(64),
    "a table beyond the end": lambda: (2**40).to_bytes(8, "little") + b"{}",
    "a long table": lambda: file_of(b" " * (MOST_TABLE_BYTES + 1)),
    "no JSON": lambda: file_of(b"{"),
    "a list": lambda: file_of([]),
    "nested too deep": lambda: file_of(b"[" * 100_000),
    "no offsets": lambda: file_of({"adapter/a/w": {"dtype": "F32", "shape": [2]}}),
    "another dtype": lambda: file_of(table(dtype="F64")),
    "a shape of text": lambda: file_of(table(shape=["2"])),
    "a shape of booleans": lambda: file_of(table(shape=[True, 2])),
    "a negative shape": lambda: file_of(table(shape=[-1, -2])),
    "another size": lambda: file_of(table(shape=[3])),
    "a gap": lambda: file_of(table(data_offsets=[4, 12]), bytes(12)),
    "beyond the end": lambda: file_of(table(), bytes(4)),
    "bytes of nobody": lambda: file_of(table(), bytes(12)),
    "no module": lambda: file_of({"w": table()["adapter/a/w"]}),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_file_is_refused(name: str) -> None:
    with pytest.raises(ModuleError):
        read_tensors(memoryview(WRONG[name]()))


@pytest.mark.parametrize("size", [0, 1, 127, 128, 2**14, 2**21 + 1])
def test_chunks_are_those_of_the_protocol(size: int) -> None:
    data = bytes(size)
    raw = data_chunk([data[: size // 2], memoryview(data)[size // 2 :]])
    assert raw == pb.Chunk(data=data).SerializeToString()
    came = read_chunk(raw)
    assert isinstance(came, memoryview)
    assert came.tobytes() == data


def test_other_chunks_are_read_too() -> None:
    opening = pb.Opening(header=b"h", seal=b"s")
    assert read_chunk(pb.Chunk(opening=opening).SerializeToString()) == opening
    assert read_chunk(b"") is None
    twice = pb.Chunk(data=b"first").SerializeToString() + pb.Chunk(data=b"x").SerializeToString()
    came = read_chunk(twice)  # protobuf takes the last
    assert isinstance(came, memoryview)
    assert came.tobytes() == b"x"
