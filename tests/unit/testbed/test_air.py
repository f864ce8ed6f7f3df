"""The air follows the clusters' rounds and the scenario, and tells the emulator what changed."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from hffm_flower.config import RunConfig
from hffm_flower.testbed.air import Air
from hffm_flower.testbed.link import Quality
from hffm_flower.testbed.scenario import Ends, Fault, Scenario
from hffm_flower.testbed.shaping import cell_links
from hffm_flower.tree import plant

NETWORK = plant(RunConfig.load(base={"tree.devices": 4, "tree.edges": 2, "d2d.plan": "relay"}))


class Control:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Mapping[Ends, Quality]] = []

    def change(self, links: Mapping[Ends, Quality]) -> None:
        self.told.append(dict(links))


class World:
    """A clock, and an air over a tree of two edges."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, scenario: Scenario = ()) -> None:
        self.now, self.control = 100.0, Control()
        monkeypatch.setattr("hffm_flower.testbed.air.time.monotonic", lambda: self.now)
        self.air = Air(NETWORK, scenario, self.control)  # type: ignore[arg-type]

    def at(self, now: float, *rounds: int) -> None:
        self.now = now
        self.air.follow({f"edge/{edge}": t for edge, t in enumerate(rounds)})


def test_each_cluster_is_in_its_own_round(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    assert world.air.links == {**cell_links(NETWORK, 0, 1), **cell_links(NETWORK, 1, 1)}
    world.at(101.0, 1, 1)
    assert len(world.control.told) == 1
    world.at(102.0, 2, 1)
    assert world.air.links == {**cell_links(NETWORK, 0, 2), **cell_links(NETWORK, 1, 1)}
    assert all("edge/1" not in ends and "cloud" not in ends for ends in world.control.told[1])
    assert world.air.events[-1] == {"s": 2.0, "event": "round", "edge": 0, "t": 2}


def test_a_tree_without_edges_is_in_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.air.follow({"cloud": 3})
    assert world.air.links == {**cell_links(NETWORK, 0, 3), **cell_links(NETWORK, 1, 3)}


def test_a_fault_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Fault(what="cut", where="cluster/1", round=2, after_s=1, seconds=20)
    world = World(monkeypatch, (fault,))
    ends = ("edge/1", "cloud")
    world.at(110.0, 2, 1)
    assert not world.air.links[ends].cut
    world.at(111.0, 2, 2)
    assert world.air.links[ends].cut
    world.at(130.9, 3, 3)
    assert world.air.links[ends].cut
    world.at(131.0, 3, 3)
    assert not world.air.links[ends].cut
    world.at(200.0, 4, 4)
    assert not world.air.links[ends].cut
    told = [(e["s"], e["event"]) for e in world.air.events if e["event"] != "round"]
    assert told == [(11.0, "fault"), (31.0, "mended")]


def test_a_fault_of_round_1_waits_for_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, (Fault(what="cut", seconds=20),))
    ends = ("edge/1", "cloud")
    world.at(150.0, 0, 0)
    assert world.air.links[ends] == cell_links(NETWORK, 1, 1)[ends]
    world.at(160.0, 1, 1)
    assert world.air.links[ends].cut
    world.at(179.9, 1, 1)
    assert world.air.links[ends].cut
    world.at(180.0, 1, 1)
    assert not world.air.links[ends].cut


def test_faults_add_up_and_outlast_the_fading(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(
        monkeypatch,
        (Fault(what="loss", share=0.5), Fault(what="loss", share=0.5, where="device/0")),
    )
    for t in (1, 2, 3):
        world.at(100.0 + t, t, t)
        links = world.air.links
        assert links["device/0", "edge/0"].loss == pytest.approx(0.75)
        assert links["device/3", "edge/1"].loss == 0.5
        rate = cell_links(NETWORK, 1, t)["device/3", "edge/1"].rate_bit_s
        assert links["device/3", "edge/1"].rate_bit_s == rate
