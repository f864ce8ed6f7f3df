"""An edge's ServerApp is handed in again when it is gone, and not when it has ended well."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from hffm_flower.errors import HffmError
from hffm_flower.pki import supernode_pair
from hffm_flower.session import hosts
from hffm_flower.session.bundle import Run
from hffm_flower.session.roles import CloudRole
from hffm_flower.session.tiers import EdgeRun, Link


class Flwr:
    """Runs that have the state that a test gives them."""

    def __init__(self) -> None:
        self.handed_in: list[Mapping[str, object]] = []
        self.stopped: list[int] = []
        self.registered: list[Path] = []
        self.state, self.details, self.broken = "running", "", False

    def connect(self, *words: object, **more: object) -> None:
        pass

    def register(self, link: str, key: Path) -> None:
        if self.broken:
            raise HffmError("away")
        self.registered.append(key)

    def run(self, link: str, settings: Mapping[str, object]) -> int:
        if self.broken:
            raise HffmError("away")
        self.handed_in.append(settings)
        self.state = "running"
        return len(self.handed_in)

    def runs(self, link: str) -> list[Run]:
        return [Run(7, "finished:completed"), Run(8, "running"), Run(9, "pending")]

    def status(self, link: str, run_id: int) -> Run:
        return Run(run_id, self.state, 0.0, self.details)

    def stop(self, link: str, run_id: int) -> None:
        self.stopped.append(run_id)


class Processes:
    """Programs of which only lives are counted."""

    def __init__(self) -> None:
        self.lives = 1

    def start(self, program: object) -> None:
        pass

    def running(self, name: str) -> bool:
        return True

    def starts(self, name: str) -> int:
        return self.lives


class World:
    """A clock, open addresses, and an edge's run in between."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, *, database: str = "", **options: Any
    ) -> None:
        self.now, self.open = 1000.0, {"127.0.0.1:8001"}
        monkeypatch.setattr("hffm_flower.session.tiers.time.monotonic", lambda: self.now)
        monkeypatch.setattr(hosts, "listening", lambda address: address in self.open)
        # Stand-ins, with what is called of the real ones.
        self.flwr, self.processes = cast(Any, Flwr()), cast(Any, Processes())
        (folder / "a.pub").write_bytes(supernode_pair("a")[1])
        role = CloudRole.made({"insecure": True, "nodes": "*.pub", "database": database}, folder)
        self.link = Link("edge-0", role, self.processes, self.flwr)
        self.run = EdgeRun(self.link, "gate", lambda n: {"n": n}, self.flwr, **options)

    def go(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.run.tick()
            self.now += 0.5


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    return World(monkeypatch, tmp_path)


def test_a_run_that_ends_well_is_the_last(world: World) -> None:
    world.go(2)
    world.open.add("gate")
    world.go(100)
    assert (world.run.open, world.run.over) == (True, False)
    world.open.remove("gate")
    world.flwr.state = "finished:completed"
    world.go(5)
    assert world.run.over
    assert world.flwr.handed_in == [{"n": 0}]


def test_one_run_after_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World(monkeypatch, tmp_path, runs=None, retries=None)
    for _ in range(3):
        world.go(3)
        world.open.add("gate")
        world.go(3)
        world.open.remove("gate")
        world.flwr.state = "finished:completed"
        world.go(3)
    assert world.flwr.handed_in[:3] == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_a_killed_server_app_is_stopped_and_handed_in_again(world: World) -> None:
    world.go(2)
    world.open.add("gate")
    world.go(5)
    world.open.remove("gate")
    world.go(20)
    assert world.flwr.stopped == [1]
    assert world.flwr.handed_in == [{"n": 0}, {"n": 0}]


def test_a_failed_run_is_handed_in_a_few_times(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(monkeypatch, tmp_path, retries=2)
    for _ in range(6):
        world.go(2)
        world.flwr.state, world.flwr.details = "finished:failed", "no devices"
        world.go(60)
    assert world.run.given_up
    assert len(world.flwr.handed_in) == 3


def test_a_new_life_of_the_superlink_takes_keys_and_run_anew(world: World) -> None:
    world.go(5)
    world.processes.lives = 2
    world.open.clear()
    world.go(5)
    assert len(world.flwr.handed_in) == 1
    world.open.add("127.0.0.1:8001")
    world.go(5)
    assert len(world.flwr.registered) == 2
    assert len(world.flwr.handed_in) == 2


def test_a_command_that_fails_is_tried_again(world: World) -> None:
    world.flwr.broken = True
    world.go(3)
    assert not world.link.ready()
    world.flwr.broken = False
    world.go(3)
    assert world.flwr.handed_in == [{"n": 0}]


@pytest.mark.parametrize("lived", [False, True])
def test_runs_of_a_former_life_are_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lived: bool
) -> None:
    database = tmp_path / "superlink.db"
    if lived:
        database.touch()
    world = World(monkeypatch, tmp_path, database=str(database))
    world.flwr.broken = True
    world.go(5)
    world.flwr.broken = False
    world.go(5)
    assert world.flwr.stopped == [8, 9] * lived, "once, or what is handed in now would go too"
    assert world.flwr.handed_in == [{"n": 0}]
    world.processes.lives = 2
    world.go(5)
    assert world.flwr.stopped == [8, 9] * (1 + lived)
    assert world.flwr.handed_in == [{"n": 0}] * 2
