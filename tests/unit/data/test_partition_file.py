"""A partition survives its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hffm_flower.data.partition import Partition
from hffm_flower.data.partition_file import SPLITS, load_partition, save_partition
from hffm_flower.errors import ConfigError
from hffm_flower.profile import NodeProfile


def small() -> Partition:
    none = np.empty(0, np.int64)
    shards = {"watch7": (np.array([0, 2]), none, np.array([1]))}
    return Partition(
        profiles=(
            NodeProfile(0, ("sensor",), {"watch7": 2}, ("watch7",), {"watch7": 1}),
            NodeProfile(1, (), {}, ("watch7",)),
            NodeProfile(2, ("image", "sensor"), {"watch7": 1}, ("watch7", "easyvqa10")),
        ),
        train=shards,
        test_iid={"watch7": (none, none, np.array([3, 4]))},
        test_skewed={"watch7": (none, none, none)},
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "partition.npz"
    save_partition(path, small())
    save_partition(path, small())
    loaded = load_partition(path)
    assert loaded.profiles == small().profiles
    for split in SPLITS:
        for ours, theirs in zip(
            getattr(small(), split)["watch7"], getattr(loaded, split)["watch7"], strict=True
        ):
            assert theirs.dtype == np.int64
            assert ours.tolist() == theirs.tolist()
    assert [p.name for p in path.parent.iterdir()] == ["partition.npz"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_a_bad_file_is_told(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "partition.npz"
    if damage == "truncated":
        save_partition(path, small())
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "other":
        path.write_bytes(b"something else")
    with pytest.raises(ConfigError, match="draw it again"):
        load_partition(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "partition.npz"
    save_partition(path, small())
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        save_partition(path, small())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["partition.npz"]
