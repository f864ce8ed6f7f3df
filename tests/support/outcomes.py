"""What two runs are compared by."""

from __future__ import annotations

import json

import numpy as np

from hffm_flower.modules import ModularState
from hffm_flower.records import to_bytes
from tests.support.played import Played


def bits(state: ModularState) -> bytes:
    return to_bytes(state)


def outcome(run: Played) -> dict[str, object]:
    """All that a run leaves, but for times, places and which run it was."""
    assert run.error is None
    files = {
        str(p.relative_to(run.files.root)): p.read_bytes()
        for p in sorted(run.files.root.rglob("*.safetensors"))
    }
    rounds = [r.to_json() for r in run.rounds]
    lines = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in rounds]
    return {**files, "rounds": lines, "summary": run.result["summary"]}


def farthest(a: ModularState, b: ModularState) -> float:
    """Largest difference, relative to the largest parameter."""
    assert a.keys() == b.keys()
    pairs = [(a[k][n], b[k][n]) for k in a for n in a[k]]
    largest = max(float(np.abs(x).max()) for x, _ in pairs)
    return max(float(np.abs(x - y).max()) for x, y in pairs) / largest
