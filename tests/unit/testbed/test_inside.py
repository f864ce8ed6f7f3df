"""Files of a container are read without following what is in it out of it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hffm_flower.errors import ModuleError
from hffm_flower.testbed import inside
from hffm_flower.testbed.inside import read_file, round_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "it.jsonl").write_text("secret")
    made = tmp_path / "root"
    (made / "machine").mkdir(parents=True)
    (made / "machine" / "it.jsonl").write_text("ours")
    return made


def test_a_file_is_read_up_to_a_bound(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_file(root, "machine/it.jsonl") == read_file(root, "/machine/it.jsonl") == b"ours"
    monkeypatch.setattr(inside, "MOST_BYTES", 3)
    assert read_file(root, "machine/it.jsonl") == b"our"


def test_links_are_not_followed(root: Path) -> None:
    (root / "machine" / "link.jsonl").symlink_to("it.jsonl")
    (root / "away").symlink_to("../secret")
    for path in ("machine/link.jsonl", "away/it.jsonl", "machine/../../secret/it.jsonl"):
        with pytest.raises(OSError, match=r"symbolic links|Not a directory|leads upwards"):
            read_file(root, path)


def test_what_is_no_regular_file_is_left(root: Path) -> None:
    os.mkfifo(root / "machine" / "pipe")
    for path in ("machine/pipe", "machine", "machine/none"):
        with pytest.raises(OSError, match=r"no regular file|Is a directory|No such file"):
            read_file(root, path)


def test_the_round_of_an_edge(root: Path) -> None:
    path = root / "machine" / "edge-0.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, path, metadata={"edge": '{"t": 4}'})
    assert round_of(root, "machine/edge-0.safetensors") == 4


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 9, b"\x02" + bytes(7) + b"{}", b"\x08" + bytes(7) + b"[" * 8]
)
def test_what_is_no_state(root: Path, data: bytes) -> None:
    (root / "machine" / "edge-0.safetensors").write_bytes(data)
    with pytest.raises(ModuleError, match="edge-0"):
        round_of(root, "machine/edge-0.safetensors")
