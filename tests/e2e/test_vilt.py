"""ViLT of the published size, and every method of the case study as one command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hffm_flower.session.entries import DEFAULT
from tests.support.checkpoints import make_vilt

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"said +(\d+) MiB, took +(\d+) MiB")


@pytest.mark.slow
def test_full_size_vilt_takes_the_memory_that_was_said() -> None:
    """As much as `hffm plan-memory` says, within 20 %, at the peak of a process that trains."""
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.vilt", "--steps", "0"],
        check=True, capture_output=True, text=True, timeout=1800, cwd=ROOT,
    )  # fmt: skip
    found = [(int(said), int(took)) for said, took in LINE.findall(told.stdout)]
    assert len(found) == 3
    for said, took in found:
        assert said == pytest.approx(took, rel=0.2)
    assert found[1][0] < found[0][0]  # inner states computed again
    assert found[2][0] < found[0][0]  # the last two layers


@pytest.mark.slow
def test_every_method_of_the_case_study_in_one_command(tmp_path: Path) -> None:
    vilt = make_vilt(tmp_path / "vilt")
    out = tmp_path / "out"
    changes = {
        "data.tasks": "easyvqa10 emojivqa10", "data.train-per-answer": 8,
        "data.test-per-answer": 4, "data.alpha": 1.0, "model.adapter-rank": 8,
        "model.backbone": f"hf:{vilt}", "model.encoders": f"image=hf:{vilt} text=hf:{vilt}",
        "paths.cache": tmp_path / "cache", "paths.state": tmp_path / "state",
    }  # fmt: skip
    sets = [word for k, v in changes.items() for word in ("--set", f"{k}={v}")]
    subprocess.run(
        [
            *(sys.executable, "-c", "from hffm_flower.cli import main; main()"),
            *("compare", str(ROOT / "deploy" / "runs" / "case-study.toml")),
            *("--rounds", "8", "--devices", "4", "--edges", "2", "--out", str(out), *sets),
        ],
        check=True, timeout=1800,
    )  # fmt: skip
    rows = json.loads((out / "table.json").read_text(encoding="utf-8"))
    named = rows if isinstance(rows, list) else rows["rows"]
    assert [row["method"] for row in named] == list(DEFAULT)
    assert all(0 <= row["accuracy"] <= 1 for row in named)
