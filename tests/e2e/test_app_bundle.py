"""What users install: the Flower app bundle and the wheel hold the code and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from hffm_flower import __version__
from hffm_flower.config import RunConfig

ROOT = Path(__file__).parents[2]
PACKAGES = ("hffm_flower", "strategies", "clients")
MAX_BYTES = 10 * 2**20
"""Flower refuses a larger bundle."""


def code() -> set[str]:
    return {p.relative_to(ROOT).as_posix() for d in PACKAGES for p in (ROOT / d).rglob("*.py")}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources in a folder of the name that Flower accepts."""
    copy = tmp_path_factory.mktemp("checkout") / "hffm-flower"
    copy.mkdir()
    for folder in (*PACKAGES, "tests", "docs", "deploy"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    named = (".gitignore", "LICENSE", "constraints.txt", "pyproject.toml")
    for file in [*(ROOT / name for name in named), *ROOT.glob("*.md")]:
        shutil.copy(file, copy / file.name)
    return copy


def run(command: list[str], cwd: Path) -> None:
    quiet = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_HOME": str(cwd / "flwr-home"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | quiet, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_app_bundle_holds_the_code_and_no_tests(checkout: Path, tmp_path: Path) -> None:
    flwr = Path(sys.executable).parent / "flwr"
    run([str(flwr), "build", "--app", str(checkout)], tmp_path)
    (bundle,) = tmp_path.glob("hffm-flower.hffm-flower.*.fab")
    assert bundle.stat().st_size < MAX_BYTES
    with zipfile.ZipFile(bundle) as archive:
        names = set(archive.namelist())
        config = tomllib.loads(archive.read("pyproject.toml").decode())
    assert names == code() | {"pyproject.toml", "LICENSE", ".info/CONTENT"}
    own = config["tool"]["flwr"]["app"]["config"]
    assert own["tree"]["devices"] == RunConfig().tree.devices


def test_wheel_holds_three_packages_typed(checkout: Path, tmp_path: Path) -> None:
    run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"),
            *("--no-index", "--wheel-dir", str(tmp_path), str(checkout)),
        ],
        tmp_path,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"hffm_flower-{__version__}-py3-none-any.whl"
    info = f"hffm_flower-{__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert {name.split("/")[0] for name in names} == {*PACKAGES, info}
    assert {n for n in names if n.endswith(".py")} == code()
    assert "hffm_flower/py.typed" in names
    assert f"{info}/licenses/LICENSE" in names
    assert "hffm = hffm_flower.cli:main" in entry_points
