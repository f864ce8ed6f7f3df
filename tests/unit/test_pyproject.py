"""pyproject.toml tells Flower, the wheel and the reader the same as the code does."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from flwr.common.config import flatten_dict, fuse_dicts, get_project_config

import hffm_flower
from hffm_flower.config import RunConfig

ROOT = Path(__file__).parents[2]
PACKAGES = ("hffm_flower", "strategies", "clients")


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def expected_table() -> str:
    """The tables to paste into pyproject.toml."""
    tables = []
    flat = RunConfig().to_flwr().items()
    for table, items in groupby(flat, key=lambda item: item[0].rpartition(".")[0]):
        name = f"tool.flwr.app.config.{table}".rstrip(".")
        lines = [f"{key.rpartition('.')[2]} = {json.dumps(value)}" for key, value in items]
        tables.append("\n".join([f"[{name}]", *lines, ""]))
    return "\n".join(tables)


def test_flower_reads_the_default_config() -> None:
    found = flatten_dict(get_project_config(ROOT)["tool"]["flwr"]["app"]["config"])
    want = RunConfig().to_flwr()
    hint = f"paste into pyproject.toml:\n\n{expected_table()}"
    assert found == want, hint
    assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in want.items()}, hint
    assert expected_table() in (ROOT / "pyproject.toml").read_text(encoding="utf-8"), hint


def test_an_override_of_flwr_run_reaches_the_run_config() -> None:
    own = flatten_dict(get_project_config(ROOT)["tool"]["flwr"]["app"]["config"])
    config = RunConfig.from_flwr(fuse_dicts(own, {"tree.edges": 4, "data.tasks": "watch7"}))
    assert config.tree.edges == 4
    assert config.data.tasks == ("watch7",)
    with pytest.raises(ValueError, match=r"tree\.leaves"):
        fuse_dicts(own, {"tree.leaves": 4})


def test_packages_lie_side_by_side() -> None:
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None, package
        assert spec.origin == str(ROOT / package / "__init__.py")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_with_code_is_a_package(package: str) -> None:
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").exists()] == []


def test_versions_agree() -> None:
    project = pyproject()["project"]
    assert project["version"] == hffm_flower.__version__ == version("hffm-flower")
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_app_bundle_patterns_cover_all_code() -> None:
    patterns = pyproject()["tool"]["flwr"]["app"]["fab-include"]
    included = {path for pattern in patterns for path in ROOT.glob(pattern)}
    code = {path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert code - included == set()
    assert included - code == {ROOT / "LICENSE"}


def test_wheel_is_built_from_the_three_packages() -> None:
    assert tuple(pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == PACKAGES


def test_constraints_pin_every_requirement() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {_name(name): pin for name, pin in pins.items()}
    project = pyproject()["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (r for group in groups for r in group):
        name = _name(re.split(r"[\[<>=]", requirement)[0])
        if name != "hffm-flower":
            assert name in pins, f"constraints.txt has no pin for {requirement!r}"
            exact = requirement.partition("==")[2]
            assert exact in ("", pins[name]), requirement
    assert [p for p in pins.values() if "+" in p] == [], "a pin of a local build fits one index"


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()
