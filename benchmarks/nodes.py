"""A tiny round over several devices: long-lived nodes against `flower-supernode`.

Run: ``python -m benchmarks.nodes [DEVICES]`` from the checkout. A round is one training and
one evaluation of all devices; its time is what lies between two lines of ``rounds.jsonl``.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.support.deployment import Deployment

SETTINGS: dict[str, object] = {
    "tree.edges": 2,
    "tree.period": 1,
    "data.tasks": "watch7",
    "data.train-per-answer": 16,
    "data.test-per-answer": 8,
    "data.full-modality-share": 1.0,
    "model.backbone": "small",
    "train.local-epochs": 1,
}
ROUNDS = {"long-lived": 8, "flower-supernode": 2}
PATIENCE_S = 1200.0
"""For the nodes, and the run: one of ten `flower-supernode` has rounds of a minute."""
ONLINE = {"long-lived": "is online", "flower-supernode": "SuperNode ID"}


def round_s(folder: Path, kind: str, devices: int) -> float:
    """Median time of a round after the first [s]."""
    with Deployment(folder) as deployment:
        deployment.superlink()
        start = deployment.node if kind == "long-lived" else deployment.supernode
        nodes = [start(index) for index in range(devices)]
        until = time.monotonic() + PATIENCE_S
        while not all(ONLINE[kind] in deployment.log(f"node-{k}") for k in range(devices)):
            if time.monotonic() > until:
                raise SystemExit(f"not all nodes are online after {PATIENCE_S:.0f} s")
            time.sleep(0.5)
        settings = {**SETTINGS, "rounds": ROUNDS[kind], "tree.devices": devices}
        run = deployment.submit(settings, "run")
        while not (run / "result.json").exists():
            if not all(node.is_running() for node in nodes):
                raise SystemExit("a node has ended")
            if time.monotonic() > until:
                raise SystemExit(f"the run has not ended after {PATIENCE_S:.0f} s")
            time.sleep(0.5)
        lines = (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        if result["status"] != "finished":
            raise SystemExit(result["reason"])
    ends = [float(json.loads(line)["seconds"]) for line in lines]
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def main(devices: int = 10) -> None:
    """Print seconds per round of both, and the ratio."""
    spent = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ROUNDS:
            spent[kind] = round_s(Path(folder) / kind, kind, devices)
            print(f"{kind:>16}: {spent[kind]:6.2f} s a round, {devices} devices", flush=True)
    ratio = spent["flower-supernode"] / spent["long-lived"]
    print(f"long-lived nodes are {ratio:.1f} times as fast")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
