"""Every benchmark that needs no tree, image or checkpoint runs, here on the smallest input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("words", "said"), [
    ("aggregation 2", "ratio"),
    ("d2d 4 1", "summing / forwarding: uplink bytes 0.25"),
    ("lora 32 2 2", "ratio"),
    ("peers 2 1", "of the plain stream"),
    ("pricing 4", "gossip"),
    ("wireless 1000", "umi"),
])  # fmt: skip
def test_it_measures_and_says_what(words: str, said: str) -> None:
    name, *numbers = words.split()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *numbers],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
