"""Modules that never leave: versions, whole files, rounds asked for twice."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from clients.store import DeviceStore
from hffm_flower.errors import ModuleError, ProtocolError
from hffm_flower.modules import ModularState, ModularUpdate, ModuleKey
from hffm_flower.records import to_bytes, write_state

HEAD = ModuleKey.parse("head/easyvqa10")


def state(value: float) -> ModularState:
    return {HEAD: {"out.bias": np.full(3, value, np.float32)}}


def value(store: DeviceStore, before: int) -> float | None:
    read = store.read(before)
    return float(read[HEAD]["out.bias"][0]) if read else None


@pytest.fixture
def store(tmp_path: Path) -> DeviceStore:
    return DeviceStore(tmp_path, 4)


def test_an_empty_store_has_nothing(store: DeviceStore) -> None:
    assert (store.versions(), store.read(1), store.read(100)) == ([], {}, {})
    assert not store.folder.exists()


def test_two_versions_are_kept_and_the_last_before_t_is_read(store: DeviceStore) -> None:
    for t in (1, 2, 5, 10):
        store.publish(state(t), t)
    assert store.versions() == [5, 10]
    assert [value(store, t) for t in (5, 6, 10, 11, 99)] == [None, 5, 5, 10, 10]


def test_a_round_asked_for_twice_begins_from_the_same_bits(store: DeviceStore) -> None:
    for t in (1, 2, 3):
        store.publish(state(t), t)
    before = value(store, 3)
    store.publish(state(33), 3)  # the second answer to round 3
    assert value(store, 3) == before == 2
    assert value(store, 4) == 33
    assert store.versions() == [2, 3]


def test_a_version_that_was_not_finished_is_not_there(store: DeviceStore) -> None:
    store.publish(state(1), 1)
    (store.folder / ".tmp2").write_bytes(b"half a file")
    assert store.versions() == [1]
    assert value(store, 9) == 1
    store.publish(state(2), 2)
    assert value(store, 9) == 2
    assert sorted(p.name for p in store.folder.iterdir()) == [
        ".tmp2",
        "1.safetensors",
        "2.safetensors",
    ]


def test_a_failing_write_leaves_the_version_that_was(
    store: DeviceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish(state(1), 1)

    def fail(source: str, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        store.publish(state(7), 1)
    with pytest.raises(OSError, match="disk full"):
        store.publish(state(7), 2)
    assert store.versions() == [1]
    assert value(store, 9) == 1


def test_a_damaged_version_is_told(store: DeviceStore) -> None:
    store.publish(state(1), 1)
    (store.folder / "1.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ModuleError, match=r"1\.safetensors: not a safetensors file"):
        store.read(2)


def test_devices_do_not_share(tmp_path: Path) -> None:
    DeviceStore(tmp_path, 1).publish(state(1), 1)
    assert DeviceStore(tmp_path, 11).versions() == []
    assert DeviceStore(tmp_path / "other", 1).versions() == []
    assert value(DeviceStore(tmp_path, 1), 2) == 1


def test_the_own_update_is_kept_until_the_next_round(tmp_path: Path) -> None:
    update = ModularUpdate(state(7), {HEAD: 1 / 3})
    DeviceStore(tmp_path, 4).keep(update, 2)
    came = DeviceStore(tmp_path, 4).kept(2)  # as another process sees it
    assert came.mass == update.mass
    assert to_bytes(came.state) == to_bytes(update.state)
    DeviceStore(tmp_path, 4).keep(ModularUpdate({}, {}), 3)
    assert DeviceStore(tmp_path, 4).kept(3) == ModularUpdate({}, {})
    with pytest.raises(ProtocolError, match="no update of edge round 2 is kept here"):
        DeviceStore(tmp_path, 4).kept(2)
    assert DeviceStore(tmp_path, 4).versions() == []


def test_a_damaged_update_is_not_given_away(tmp_path: Path) -> None:
    store = DeviceStore(tmp_path, 4)
    store.keep(ModularUpdate(state(7), {HEAD: 1.0}), 2)
    (path,) = (store.folder / "own").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ProtocolError, match="no update of edge round 2 is kept here"):
        store.kept(2)
    write_state(path, state(7))  # no masses
    with pytest.raises(ProtocolError, match="no update of edge round 2 is kept here"):
        store.kept(2)
