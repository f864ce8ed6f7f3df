"""Keeps a partition in one file, so that devices need not draw it (nor have flwr-datasets)."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from hffm_flower.data.partition import Partition, Shards
from hffm_flower.errors import ConfigError
from hffm_flower.profile import NodeProfile

FORMAT: Final = 2
SPLITS: Final = ("train", "test_iid", "test_skewed")


def save_partition(path: Path, partition: Partition) -> None:
    """Write ``partition`` to ``path`` (npz); it appears there whole or not at all."""
    profiles = [
        {
            "modalities": p.modalities,
            "tasks": dict(p.tasks),
            "wanted": p.wanted,
            "tests": dict(p.tests),
        }
        for p in partition.profiles
    ]
    tasks = list(partition.train)
    head = json.dumps({"format": FORMAT, "tasks": tasks, "profiles": profiles})
    arrays = {"head": np.frombuffer(head.encode(), np.uint8)}
    for split in SPLITS:
        for task, shards in getattr(partition, split).items():
            arrays[f"{split}/{task}"] = np.concatenate(shards)
            arrays[f"{split}/{task}/sizes"] = np.array([len(s) for s in shards], np.int64)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            temporary = file.name
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_partition(path: Path) -> Partition:
    """Read back what `save_partition` wrote.

    Raises:
        ConfigError: The file is missing, damaged or of another version.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            head = json.loads(file["head"].tobytes())
            if head["format"] != FORMAT:
                raise ValueError(f"format {head['format']}, not {FORMAT}")
            train, iid, skewed = (
                {task: _shards(file, f"{split}/{task}") for task in head["tasks"]}
                for split in SPLITS
            )
    except Exception as error:  # a damaged zip file raises whatever its damage leads to
        raise ConfigError(
            f"{path} is not a partition that this version wrote ({error}); draw it again",
            key="data",
        ) from error
    profiles = tuple(
        NodeProfile(i, tuple(p["modalities"]), p["tasks"], tuple(p["wanted"]), p["tests"])
        for i, p in enumerate(head["profiles"])
    )
    return Partition(profiles, train, iid, skewed)


def _shards(file: np.lib.npyio.NpzFile, name: str) -> Shards:
    cuts = np.cumsum(file[f"{name}/sizes"])[:-1]
    return tuple(np.split(file[name], cuts))
