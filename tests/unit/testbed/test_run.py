"""A run on the testbed that is stopped has a report all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hffm_flower.config import RunConfig
from hffm_flower.errors import HffmError, Interrupted
from hffm_flower.runfiles import RESULT, RunFiles
from hffm_flower.testbed import run
from hffm_flower.testbed.report import REPORT

CONFIG = RunConfig.load(base={"tree.devices": 4, "tree.edges": 2, "d2d.plan": "relay"})


class Hosts:
    """No namespaces."""

    air = carried = None

    def __init__(self, *_: object) -> None:
        """Nothing is made."""

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is there."""


@pytest.mark.parametrize("stopped", [Interrupted("by SIGTERM"), KeyboardInterrupt()])
@pytest.mark.parametrize("begun", [True, False])
def test_a_stopped_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: BaseException, begun: bool
) -> None:
    files = RunFiles.claim(tmp_path / "run")

    def up(*_: Any) -> None:
        if begun:
            (files.root / RESULT).write_text('{"status": "stopped", "config": {}, "summary": null}')
            (files.root / "rounds.jsonl").touch()
        raise stopped

    monkeypatch.setattr(run, "NamespaceHosts", Hosts)
    monkeypatch.setattr(run, "up", up)
    with pytest.raises(type(stopped)):
        run.run_scenario("calm", (), CONFIG, None, files, print)  # type: ignore[arg-type]
    assert (files.root / REPORT).exists() == begun
    if begun:
        told = json.loads((files.root / REPORT).read_text())
        assert told["status"] == "stopped"
        assert told["reason"] == (str(stopped) or "stopped on request")
    files.release()


def test_a_run_whose_links_fail_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cloud was stopped for it, and says only that."""
    files = RunFiles.claim(tmp_path / "run")

    def up(*_: Any) -> None:
        (files.root / RESULT).write_text('{"status": "interrupted", "config": {}, "summary": null}')
        (files.root / "rounds.jsonl").touch()
        raise HffmError("the link emulator is gone")

    monkeypatch.setattr(run, "NamespaceHosts", Hosts)
    monkeypatch.setattr(run, "up", up)
    outcome = run.run_scenario("", (), CONFIG, None, files, print)  # type: ignore[arg-type]
    assert (outcome.status, outcome.reason) == ("failed", "the link emulator is gone")
    files.release()
