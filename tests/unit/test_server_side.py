"""The cloud and the edges run where nothing is installed but the base package."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
ABSENT = ("torch", "transformers", "peft", "scipy", "PIL", "ray", "flwr_datasets", "matplotlib")
MODULES = (
    "hffm_flower.cli", "hffm_flower.session.serving", "hffm_flower.session.following",
    "hffm_flower.session.folders", "hffm_flower.session.guard", "hffm_flower.cli.run",
    "strategies.server_app", "strategies.edge_tier", "clients.edge_proxy", "clients.runner",
)  # fmt: skip
PROGRAM = f"""
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
for name in {MODULES!r}:
    importlib.import_module(name)
print("all there")
"""


def test_the_server_side_needs_the_base_package_only() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.stdout == "all there\n", done.stderr


def test_what_is_absent_there_is_in_no_base_requirement() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = " ".join(project["dependencies"]).lower()
    assert not [name for name in ABSENT if name.lower().replace("_", "-") in base]
