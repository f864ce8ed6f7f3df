"""`hffm submit` keeps its folder until the run's ServerApp takes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError, HffmError, OutputError
from hffm_flower.runfiles import HANDED_IN, ROUNDS, RunFiles
from hffm_flower.session import serving
from hffm_flower.session.bundle import Run
from hffm_flower.session.roles import CloudRole


class Cloud:
    """Takes a run, or does not."""

    works = True
    at_work: tuple[Run, ...] = (Run(1, "finished:failed"),)

    def __init__(self, home: Path) -> None:
        pass

    def connect(self, *words: object) -> None:
        pass

    def runs(self, name: str) -> list[Run]:
        return list(self.at_work)

    def run(self, name: str, settings: dict[str, object]) -> int:
        root = Path(str(settings["paths.out"]))
        assert [p.name for p in root.iterdir()] == [HANDED_IN]
        if not self.works:
            raise HffmError("the cloud is away")
        return 7


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFiles:
    monkeypatch.setattr(serving, "Flwr", Cloud)
    return RunFiles.claim(tmp_path / "run")


def test_nobody_else_gets_the_folder_before_its_server_app(files: RunFiles) -> None:
    told = serving.submit(CloudRole(insecure=True), RunConfig(), lambda: files, Path("home"))
    assert told == (7, files)
    files.release()
    with pytest.raises(OutputError, match="already holds a run"):
        RunFiles.claim(files.root)
    RunFiles.create(files.root)
    assert [p.name for p in files.root.iterdir()] == [ROUNDS]


def test_a_folder_whose_run_was_not_taken_is_free(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cloud, "works", False)
    with pytest.raises(HffmError, match="away"):
        serving.submit(CloudRole(insecure=True), RunConfig(), lambda: files, Path("home"))
    files.release()
    RunFiles.claim(files.root)


def test_a_cloud_that_is_at_work_takes_no_other_run(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cloud, "at_work", (Run(8, "running"),))
    with pytest.raises(ConfigError, match="run 8 is at work"):
        serving.submit(CloudRole(insecure=True), RunConfig(), pytest.fail, Path("home"))
