"""`hffm submit` keeps its folder until the run's ServerApp takes it; roles tell that they work."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError, HffmError, OutputError
from hffm_flower.runfiles import HANDED_IN, ROUNDS, RunFiles
from hffm_flower.session import serving
from hffm_flower.session.bundle import Run
from hffm_flower.session.processes import Processes, Program
from hffm_flower.session.roles import CloudRole, DeviceRole


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


class Over(Exception):
    """The test has seen enough."""


class Programs:
    """Two programs, of which one may be down, for one look and no more."""

    def __init__(self, *, down: str = "") -> None:
        self.down, self.looks = down, 0

    def look_after(self) -> None:
        self.looks += 1
        if self.looks > 1:
            raise Over

    def names(self) -> tuple[str, ...]:
        return ("superlink", "guard")

    def running(self, name: str) -> bool:
        return name != self.down

    def given_up(self, name: str) -> bool:
        return False


@pytest.mark.parametrize(("works", "down", "alive"), [
    (True, "", True), (False, "", False), (True, "guard", False),
])  # fmt: skip
def test_the_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool, down: str, alive: bool
) -> None:
    monkeypatch.setenv(serving.ALIVE, str(tmp_path / "alive"))
    monkeypatch.setattr(serving, "TICK_S", 0.0)
    with pytest.raises(Over):
        serving._look_after(cast(Processes, Programs(down=down)), lambda: works)
    assert (tmp_path / "alive").exists() == alive


def test_a_sign_of_life_without_a_place_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(serving.ALIVE, str(tmp_path / "none" / "alive"))
    with pytest.raises(ConfigError, match=r"HFFM_ALIVE: '.*none/alive' is not a file in a folder"):
        serving._look_after(cast(Processes, Programs()), pytest.fail)


@pytest.mark.parametrize("stock", ["", "127.0.0.1:9094"])
def test_a_node_tells_when_the_tier_above_knows_it(tmp_path: Path, stock: str) -> None:
    class Started:
        scratch = tmp_path

        def start(self, program: Program) -> None:
            self.program = program

    started = Started()
    role = DeviceRole(index=0, superlink="h:1", insecure=True, stock_node=stock)
    online = serving._start_node(cast(Processes, started), role, "device")
    assert online() == bool(stock)  # Flower's own node says nothing
    if not stock:
        assert started.program.argv[-2] == "--online"
        Path(started.program.argv[-1]).touch()
    assert online()
