"""Memory of payloads comes back when the last view of it is gone, and not before."""

from __future__ import annotations

import gc

import numpy as np

from hffm_flower.rpc.buffers import ALIGN, Buffers


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def test_a_buffer_is_used_again_once_nothing_looks_at_it() -> None:
    buffers = Buffers(kept_bytes=10 * ALIGN)
    lent = buffers.take(3 * ALIGN)
    where = address(lent)
    tensor = np.frombuffer(lent, np.float32, 4, 64).reshape(2, 2)
    del lent
    gc.collect()
    other = buffers.take(3 * ALIGN)
    assert address(other) != where
    tensor[:] = 1.0
    del tensor
    again = buffers.take(2 * ALIGN + 1)
    assert address(again) == where
    assert len(again) == 2 * ALIGN + 1


def test_small_payloads_do_not_take_a_large_buffer() -> None:
    buffers = Buffers(kept_bytes=100 * ALIGN)
    large = buffers.take(50 * ALIGN)
    where = address(large)
    del large
    assert address(buffers.take(ALIGN)) != where


def test_no_more_is_kept_than_was_said() -> None:
    buffers = Buffers(kept_bytes=4 * ALIGN)
    three = [buffers.take(2 * ALIGN) for _ in range(3)]
    places = {address(b) for b in three}
    del three
    gc.collect()
    assert sum(b.nbytes for b in buffers.unused) == 4 * ALIGN
    assert {b.ctypes.data for b in buffers.unused} < places


def test_nothing_is_a_buffer_too() -> None:
    assert len(Buffers(kept_bytes=1).take(0)) == 0
