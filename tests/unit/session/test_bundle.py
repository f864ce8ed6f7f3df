"""The app bundle of the installed packages, and what the ``flwr`` command answers."""

from __future__ import annotations

import os
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.common.config import flatten_dict

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError, HffmError
from hffm_flower.session import bundle
from hffm_flower.session.bundle import PACKAGES, QUIET, Flwr, make_app, program, to_toml

ROOT = Path(__file__).parents[3]


def test_flower_builds_the_app_with_all_code_and_nothing_else(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    home = {"FLWR_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [program("flwr"), "build", "--app", str(app)], cwd=tmp_path, check=False,
        env={**os.environ, **QUIET, **home}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (fab,) = tmp_path.glob("*.fab")
    with zipfile.ZipFile(fab) as archive:
        names = set(archive.namelist())
    code = {p.relative_to(ROOT).as_posix() for d in PACKAGES for p in (ROOT / d).rglob("*.py")}
    assert names == code | {"pyproject.toml", "LICENSE", ".info/CONTENT"}


@pytest.mark.parametrize(("proxy", "client"), [(False, "client_app"), (True, "edge_proxy")])
def test_the_app_has_every_setting_and_its_client(tmp_path: Path, proxy: bool, client: str) -> None:
    project = tomllib.loads((make_app(tmp_path, proxy=proxy) / "pyproject.toml").read_text())
    app = project["tool"]["flwr"]["app"]
    assert flatten_dict(app["config"]) == RunConfig().to_flwr()
    assert app["components"]["clientapp"] == f"clients.{client}:app"
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert app["components"]["serverapp"] == own["tool"]["flwr"]["app"]["components"]["serverapp"]
    assert app["flwr-version-target"] == own["tool"]["flwr"]["app"]["flwr-version-target"]


def test_packages_that_do_not_lie_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "hffm_flower").mkdir()
    (tmp_path / "hffm_flower" / "__init__.py").touch()
    with pytest.raises(ConfigError, match="no package 'strategies'"):
        make_app(tmp_path / "to", packages=tmp_path)


def test_settings_survive_toml() -> None:
    settings = {"a.b": 'quote " \\ back', "a.c": True, "x": 1, "y": 1e-28, "z": "ä 🙂"}
    assert flatten_dict(tomllib.loads(to_toml(settings))) == settings


def test_a_program_that_is_not_installed() -> None:
    with pytest.raises(ConfigError, match="there is no program 'flower-nothing'"):
        program("flower-nothing")


def test_connections_are_flowers_own_format(tmp_path: Path) -> None:
    flwr = Flwr(tmp_path)
    flwr.connect("cloud", "127.0.0.1:1", None)
    flwr.connect("edge-0", "127.0.0.1:2", tmp_path / "ca.pem")
    assert tomllib.loads((tmp_path / "config.toml").read_text()) == {
        "superlink": {
            "default": "cloud",
            "cloud": {"address": "127.0.0.1:1", "insecure": True},
            "edge-0": {"address": "127.0.0.1:2", "root-certificates": str(tmp_path / "ca.pem")},
        }
    }


@pytest.mark.parametrize(("out", "reason"), [
    ('{"success": false, "error-message": "no such run"}', "flwr ls: no such run"),
    ("Connection refused", "flwr ls: Connection refused"),
    ("", "flwr ls: no answer"),
])  # fmt: skip
def test_a_command_that_fails_says_why(out: str, reason: str) -> None:
    with pytest.raises(HffmError, match=reason):
        bundle._answer("flwr ls", out, "")


def test_answers_may_follow_other_words() -> None:
    assert bundle._answer("flwr run", 'Built\n{"success": true, "run-id": "3"}\n', "") == {
        "success": True, "run-id": "3",
    }  # fmt: skip
