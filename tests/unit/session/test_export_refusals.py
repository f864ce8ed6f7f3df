"""What ``hffm export`` refuses, and the command itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hffm_flower.cli import main
from hffm_flower.errors import ConfigError, OutputError
from hffm_flower.session.export import export
from tests.support.exported import finished, fresh, settings, shaken


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HFFM_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model__adapter": "bottleneck"}, "no LoRA modules; model.adapter was bottleneck$"),
        (
            {"model__adapter": "experts", "model__tune": "text=last:1"},
            "model.adapter was experts and model.tune trained all weights",
        ),
        ({"model__weights": "random"}, "model.weights was random"),
    ],
)
def test_runs_without_anything_to_export(
    changes: dict[str, object], match: str, tmp_path: Path
) -> None:
    files = finished(settings(**changes), tmp_path / "run", {})
    with pytest.raises(ConfigError, match=match):
        export(files.root, tmp_path / "out")


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no finished run"):
        export(tmp_path, tmp_path / "out")
    files = finished(settings(), tmp_path / "run", {})
    with pytest.raises(OutputError, match=r"the cloud has no whole LoRA .*modules: none"):
        export(files.root, tmp_path / "out")
    with pytest.raises(OutputError, match="not an empty folder"):
        export(files.root, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="not an empty folder"):
        export(files.root, tmp_path / "file")


def test_one_factor_alone_is_no_adapter(tmp_path: Path) -> None:
    config = settings(**{"server__lora-rule": "lora-share-a"})
    state = {k: s for k, s in fresh(config).state().items() if not k.name.endswith(".B")}
    files = finished(config, tmp_path / "run", state)
    with pytest.raises(OutputError, match=r"adapter/fusion.4.A.*e.g. --node device/0"):
        export(files.root, tmp_path / "out")


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = settings()
    files = finished(config, tmp_path / "run", shaken(fresh(config).state()))
    for code in (0, 2):  # the second time, the folder is taken
        monkeypatch.setattr(sys, "argv", ["hffm", "export", str(files.root)])
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code in ({0, None} if code == 0 else {2})
    assert (files.root / "peft" / "cloud" / "text" / "adapter_config.json").exists()
    assert "not an empty folder" in capsys.readouterr().err
