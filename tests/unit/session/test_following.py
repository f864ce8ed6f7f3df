"""A run that was handed in is followed to its end, or to the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hffm_flower.config import RunConfig
from hffm_flower.errors import HffmError
from hffm_flower.report import RoundReport
from hffm_flower.runfiles import ROUNDS, RunFiles
from hffm_flower.session import following
from hffm_flower.session.bundle import Run
from hffm_flower.session.roles import CloudRole

CLOUD = CloudRole(insecure=True)


class Cloud:
    """Says of run 7 what a test wants, one answer after another, the last one again."""

    says: Sequence[Run | Callable[[], Run]] = ()

    def __init__(self, home: Path) -> None:
        self.asked = 0

    def connect(self, *words: object) -> None:
        pass

    def status(self, name: str, run_id: int) -> Run:
        answer = self.says[min(self.asked, len(self.says) - 1)]
        self.asked += 1
        return answer() if callable(answer) else answer


def away() -> Run:
    raise HffmError("connection refused")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFiles:
    monkeypatch.setattr(following, "Flwr", Cloud)
    monkeypatch.setattr(following, "TICK_S", 0.001)
    monkeypatch.setattr(following, "STATUS_S", 0.0)
    monkeypatch.setattr(Cloud, "says", [Run(7, "running")])
    return RunFiles.create(tmp_path / "run")


def result(status: str, **more: object) -> dict[str, Any]:
    return {"config": {}, "summary": {}, "status": status, **more}


def follow(files: RunFiles, show: Callable[[RoundReport], None] = lambda report: None) -> None:
    following.follow(CLOUD, 7, files, show, config=RunConfig(), home=files.root / "home")


def test_each_round_is_shown_once(files: RunFiles) -> None:
    shown = []

    def show(report: RoundReport) -> None:
        shown.append(report.t)
        if report.t == 1:
            files.append(RoundReport(2))
            files.write_result(result("finished"))

    files.append(RoundReport(1))
    follow(files, show)
    assert shown == [1, 2]


def test_a_run_that_has_not_begun_is_waited_for(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin() -> Run:
        (files.root / ROUNDS).touch()
        files.write_result(result("finished"))
        return Run(7, "running")

    (files.root / ROUNDS).unlink()
    monkeypatch.setattr(Cloud, "says", [away, away, begin])
    follow(files)


def test_a_failure_has_its_reason(files: RunFiles) -> None:
    files.write_result(result("failed", reason="1 of 2 nodes were online"))
    with pytest.raises(HffmError, match="run 7: 1 of 2 nodes were online"):
        follow(files)


@pytest.mark.parametrize(("says", "reason"), [
    ([Run(7, "finished:failed", details="exit 200")], "run 7 has ended, finished:failed: exit 200"),
    ([Run(7, "unknown")], "run 7 has ended, unknown: no reason given"),
    ([Run(7, "running"), away], "the cloud is lost, silent 3 times: connection refused"),
])  # fmt: skip
def test_an_end_without_a_result(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch, says: list[Any], reason: str
) -> None:
    monkeypatch.setattr(Cloud, "says", says)
    with pytest.raises(HffmError, match=reason):
        follow(files)


def test_patience_has_an_end(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "patience_s", lambda config: 0.01)
    with pytest.raises(HffmError, match="nothing has moved in run 7"):
        follow(files)
