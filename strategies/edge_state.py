"""An edge's state on disk: one safetensors file, replaced whole after every edge round."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hffm_flower.errors import ModuleError
from hffm_flower.modules import ModuleKey
from hffm_flower.records import write_bytes
from hffm_flower.report import RoundReport
from strategies.edge import EdgeStrategy

MODULE, MOMENT = "module", "moment"


def save_edge(path: Path, edge: EdgeStrategy, keys: Iterable[ModuleKey]) -> None:
    """Write what ``edge`` needs to go on after its last finished round.

    Args:
        path: File.
        edge: The strategy.
        keys: All modules of the run, from which its schedule follows.
    """
    tensors = {
        f"{MODULE}/{key}/{name}": np.asarray(array, order="C")
        for key, state in edge.modules.items()
        for name, array in state.items()
    }
    tensors |= {f"{MOMENT}/{name}": array for name, array in edge.optimizer.moments().items()}
    words = {
        "t": edge.t,
        "keys": [str(k) for k in keys],
        "versions": {str(k): v for k, v in edge.versions.items()},
        "tails": {str(k): tail for k, tail in edge.tails.items()},
        "trained": {str(k): dict(who) for k, who in edge.trained.items()},
        "reports": [r.to_json() for r in edge.reports],
    }
    write_bytes(path, save(tensors, metadata={"edge": json.dumps(words)}))


def saved_round(path: Path) -> int:
    """The last edge round that is in an edge's state.

    Raises:
        ModuleError: The file is damaged, or is not there.
    """
    return int(_words(path)["t"])


def saved_keys(path: Path) -> tuple[ModuleKey, ...]:
    """All modules of the run of which ``path`` is an edge's state.

    Raises:
        ModuleError: The file is damaged.
    """
    return tuple(ModuleKey.parse(k) for k in _words(path)["keys"])


def restore_edge(path: Path, edge: EdgeStrategy) -> None:
    """Give ``edge`` the state of ``path``.

    Raises:
        ModuleError: The file is damaged.
    """
    words = _words(path)
    moments: dict[str, np.ndarray] = {}
    modules: dict[ModuleKey, dict[str, np.ndarray]] = {}
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            table, _, rest = name.partition("/")
            if table == MOMENT:
                moments[rest] = file.get_tensor(name)
            else:
                key, _, tensor = rest.rpartition("/")
                modules.setdefault(ModuleKey.parse(key), {})[tensor] = file.get_tensor(name)
    edge.modules = dict(sorted(modules.items()))
    edge.optimizer.restore(moments)
    edge.t = int(words["t"])
    edge.versions = {ModuleKey.parse(k): int(v) for k, v in words["versions"].items()}
    edge.tails = {ModuleKey.parse(k): float(v) for k, v in words["tails"].items()}
    for key, who in words["trained"].items():
        edge.trained[ModuleKey.parse(key)] = {int(d): float(n) for d, n in who.items()}
    edge.reports = [RoundReport.from_json(line) for line in words["reports"]]


def _words(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            words = json.loads(file.metadata()["edge"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModuleError(f"{path} is no edge's state: {error}") from error
    assert isinstance(words, dict)
    return words
