"""Containers that go and come while their links are shaped."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hffm_flower.errors import ConfigError
from hffm_flower.testbed import containers
from hffm_flower.testbed.containers import Attached, Container

NODES = ("cloud", "edge/0", "device/0")


class Control:
    """Keeps who is attached."""

    def __init__(self) -> None:
        self.nodes: list[str] = []

    def attach(self, node: str, addresses: Iterable[str], device: int) -> None:
        self.nodes.append(node)

    def detach(self, node: str) -> None:
        """Nothing is kept of it."""


class Space:
    """A namespace that is there unless its process has died."""

    dead: set[int]

    def __init__(self, process: int) -> None:
        if process in self.dead:
            raise FileNotFoundError(2, "No such file or directory", f"/proc/{process}/ns/net")

    def __enter__(self) -> Space:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def open_tun(self) -> int:
        return os.open("/dev/null", os.O_RDWR)

    def ip(self, lines: Sequence[str]) -> None:
        """Nothing is set."""


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    made: dict[str, Any] = {node: Container(number, {"net": f"10.0.0.{number}"})
                            for number, node in enumerate(NODES, start=1)}  # fmt: skip
    monkeypatch.setattr(Space, "dead", set(), raising=False)
    monkeypatch.setattr(containers, "Namespace", Space)
    monkeypatch.setattr(containers, "tcp_of_routes", lambda: "")
    monkeypatch.setattr(containers, "at_work", lambda *_: dict(made))
    monkeypatch.setattr(Container, "root", property(lambda self: tmp_path / str(self.pid)))
    return made


def test_one_that_is_away_is_attached_when_it_is_back(project: dict[str, Any]) -> None:
    control = Control()
    tree = Attached("tree", NODES, control)  # type: ignore[arg-type]
    project.pop("edge/0")
    tree.refresh()
    assert tree.containers.keys() == {"cloud", "device/0"}
    project["edge/0"] = Container(9, {"net": "10.0.0.2"})
    Space.dead.add(9)  # it has died since Docker told of it
    tree.refresh()
    Space.dead.clear()
    tree.refresh()
    assert tree.containers == project
    assert control.nodes == [*NODES, "edge/0"]


def test_docker_may_fail_but_at_the_beginning(
    project: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = Attached("tree", NODES, Control())  # type: ignore[arg-type]

    def refuse(*_: object) -> None:
        raise ConfigError("--docker: docker inspect: no such object: abc")

    monkeypatch.setattr(containers, "at_work", refuse)
    tree.refresh()
    assert tree.containers == project
    with pytest.raises(ConfigError, match="no such object"):
        Attached("tree", NODES, Control())  # type: ignore[arg-type]


def test_all_have_to_be_there_at_the_beginning(project: dict[str, Any]) -> None:
    Space.dead.add(2)
    with pytest.raises(ConfigError, match=r"tree: edge/0 cannot be attached: .*No such file"):
        Attached("tree", NODES, Control())  # type: ignore[arg-type]
    project.pop("device/0")
    with pytest.raises(ConfigError, match="no container at work for device/0"):
        Attached("tree", NODES, Control())  # type: ignore[arg-type]


def test_the_round_of_an_edge_that_is_away_is_kept(
    project: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tree = Attached("tree", NODES, Control())  # type: ignore[arg-type]
    assert tree.begun() is None
    folder = tmp_path / "2" / "state" / "run"
    folder.mkdir(parents=True)
    assert tree.begun() is None
    (folder / "edge-0.safetensors").touch()
    monkeypatch.setattr(containers, "round_of", lambda *_: 3)
    assert tree.begun() == {"edge/0": 4}
    (tmp_path / "2").rename(tmp_path / "gone")
    assert tree.begun() == {"edge/0": 4}
    project.clear()
    tree.refresh()
    assert tree.begun() is None


def test_a_docker_that_speaks_another_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: tool)
    for said in ("no list", '[{"Id": "abc"}]', "[1]"):
        monkeypatch.setattr(containers, "_docker", lambda *words, said=said: said)
        with pytest.raises(ConfigError, match="docker inspect does not answer as Docker's does"):
            containers.find_containers("tree", NODES)
