"""Real nodes of both kinds, each with a folder of its own, under Flower's own SuperLink."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hffm_flower.data import TASKS
from hffm_flower.runfiles import RunFiles
from hffm_flower.seeding import generator
from tests.e2e.test_nodes import SETTINGS
from tests.support.deployment import BIN, HFFM, Deployment, free_port
from tests.support.folders import write_csv, write_device


def watch(folder: Path, extra: str) -> Path:
    """A file, and recordings of every exercise and one of ``extra``."""
    for i, answer in enumerate([*TASKS["watch7"].answers, extra]):
        samples = generator(i, "e2e").standard_normal((460, 6)).round(3).tolist()
        write_csv(
            folder / "watch" / f"{i}.csv", [*"abcdef", "answer"], [[*s, answer] for s in samples]
        )
    return write_device(
        folder / "device.toml", {"watch7": {"kind": "series-csv", "path": "watch", "window": 150}}
    )


@pytest.mark.slow
def test_nodes_of_both_kinds_bring_their_own_data(tmp_path: Path) -> None:
    files = [watch(tmp_path / f"device-{k}", extra) for k, extra in enumerate(("jump", "run"))]
    with Deployment(tmp_path / "deployment") as deployment:
        deployment.superlink()
        common = ("--superlink", deployment.address, "--insecure")
        deployment.start(
            "node-0", *HFFM, "node", *common,
            "--node-config", f'partition-id=0 own-data="{files[0]}"',
        )  # fmt: skip
        deployment.start(
            "node-1", BIN / "flower-supernode", *common, "--host", "127.0.0.1",
            "--port", str(free_port()),
            "--node-config", f'partition-id=1 own-data="{files[1]}"',
        )  # fmt: skip
        run = deployment.submit({**SETTINGS, "rounds": 1}, "run")
        result = deployment.wait(run)
        assert result["status"] == "finished", result
        assert result["refused_nodes"] == {}
        (only,) = RunFiles(run).rounds()
        assert only.devices == [0, 1]
        assert only.scores["cloud"]["iid"]["watch7"].total == 2 * 3  # windows of one recording
        assert "left out 3 unknown answer: 7.csv from sample 0 ('jump')" in deployment.log("node-0")
        # A long-lived node reads its folder anew in the next run, and says what is wrong with it.
        files[0].write_text(files[0].read_text().replace('"watch"', '"clock"'))
        result = deployment.wait(deployment.submit({**SETTINGS, "tree.devices": 1}, "again"))
        assert result["status"] == "failed", result
        refused = json.dumps(result["refused_nodes"])
        assert "data.watch7.path (from" in refused
        assert "'clock' does not exist" in refused
