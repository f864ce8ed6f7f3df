from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hffm_flower.errors import ConfigError
from hffm_flower.topology import ASSOCIATIONS, LINKS, Topology, clusters, link_devices


@given(st.integers(1, 300), st.data())
def test_clusters_part_the_devices_evenly(devices: int, data: st.DataObject) -> None:
    edges = data.draw(st.integers(1, devices))
    got = clusters(devices, edges)
    assert len(got) == edges
    assert list(chain(*got)) == list(range(devices))
    sizes = [len(c) for c in got]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


def test_examples() -> None:
    assert clusters(5, 2) == ((0, 1), (2, 3, 4))
    assert clusters(3, 1) == ((0, 1, 2),)
    assert clusters(3, 3) == ((0,), (1,), (2,))


LINE = np.array([[0.0, 0], [10, 0], [30, 0], [100, 0]])
EDGES = np.array([[0.0, 40], [100, 0]])


def topology(**changes: Any) -> Topology:
    parts: dict[str, Any] = {
        "positions_m": LINE,
        "edge_positions_m": EDGES,
        "clusters": ((0, 1, 2), (3,)),
        "links": ((0, 1), (1, 2)),
    }
    return Topology(**parts | changes)


def test_what_a_topology_knows() -> None:
    got = topology()
    assert (got.devices, got.edges) == (4, 2)
    assert got.edge_of().tolist() == [0, 0, 0, 1]
    assert got.uplink_m().tolist() == pytest.approx([40, 1700**0.5, 50, 0])
    assert got.directed() == ((0, 1), (1, 0), (1, 2), (2, 1))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"positions_m": LINE * np.array([np.nan, 1])}, "device 0 stands at"),
    "infinite edge": ({"edge_positions_m": EDGES + np.inf}, "edge 0 stands at"),
    "three columns": ({"positions_m": np.zeros((4, 3))}, r"\[4, 3\]; expected \[N, 2\]"),
    "one column": ({"positions_m": np.zeros((4, 1))}, r"\[4, 1\]; expected \[N, 2\]"),
    "no edge": ({"edge_positions_m": np.zeros((0, 2))}, r"\[0, 2\]; expected"),
    "a cluster too few": ({"clusters": ((0, 1, 2, 3),)}, "1 clusters for 2 edges"),
    "a device twice": ({"clusters": ((0, 1, 2), (2, 3))}, r"repeated \[2\], missing \[\]"),
    "a device nowhere": ({"clusters": ((0, 1), (3,))}, r"repeated \[\], missing \[2\]"),
    "an unknown device": ({"clusters": ((0, 1, 2), (3, 9))}, r"repeated \[9\]"),
    "link to nobody": ({"links": ((0, 4),)}, "0-4 names an unknown device; devices are 0..3"),
    "negative link": ({"links": ((-1, 0),)}, "unknown device"),
    "link to itself": ({"links": ((1, 1),)}, "not given once"),
    "link twice": ({"links": ((0, 1), (0, 1))}, "not given once"),
    "link backwards": ({"links": ((1, 0),)}, "not given once"),
    "link across": ({"links": ((2, 3),)}, "joins cluster 0 and cluster 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_parts_that_do_not_fit(name: str) -> None:
    changes, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        topology(**changes)


def test_rules_of_links() -> None:
    one = ((0, 1, 2, 3),)
    tree = ((0, 1), (1, 2), (2, 3))
    assert link_devices(LINE, one, rule="tree") == tree
    assert link_devices(LINE, one, rule="radius", reach=15) == tree
    assert link_devices(LINE, one, rule="radius", reach=30) == ((0, 1), (0, 2), (1, 2), (2, 3))
    assert link_devices(LINE, one, rule="nearest", reach=1) == tree
    assert link_devices(LINE, one, rule="nearest", reach=2) == (
        (0, 1), (0, 2), (1, 2), (1, 3), (2, 3),
    )  # fmt: skip
    assert link_devices(LINE, one, rule="nearest") == link_devices(
        LINE, one, rule="nearest", reach=2
    )
    assert link_devices(LINE, one) == link_devices(LINE, one, rule="radius", reach=30)
    with pytest.raises(ConfigError, match=r"reach 1\.5 of rule 'nearest' is not a whole"):
        link_devices(LINE, one, rule="nearest", reach=1.5)
    assert link_devices(LINE, ((0, 1, 2), (3,)), rule="radius", reach=1e9) == (
        (0, 1), (0, 2), (1, 2),
    )  # fmt: skip


@pytest.mark.parametrize("reach", [-1.0, float("nan"), float("inf")])
def test_a_reach_that_is_none(reach: float) -> None:
    with pytest.raises(ConfigError, match="reach"):
        link_devices(LINE, ((0, 1, 2, 3),), reach=reach)


def test_an_unknown_rule() -> None:
    with pytest.raises(ConfigError, match=r"'near'.*did you mean.*radius, nearest, tree"):
        link_devices(LINE, ((0, 1, 2, 3),), rule="near")


@pytest.mark.parametrize("rule", LINKS)
@given(seed=st.integers(0, 2**32), devices=st.integers(1, 12), data=st.data())
def test_every_rule_joins_every_cluster(rule: str, seed: int, devices: int, data: Any) -> None:
    at_m = np.random.default_rng(seed).uniform(0, 100, (devices, 2))
    groups = clusters(devices, data.draw(st.integers(1, devices)))
    reach = data.draw(st.sampled_from([0.0, 1.0, 3.0, 50.0]))
    links = link_devices(at_m, groups, rule=rule, reach=reach)
    Topology(at_m, np.zeros((len(groups), 2)), groups, links)  # its own checks
    for members in groups:
        reached = {members[0]}
        for _ in members:
            reached |= {x for link in links if reached & set(link) for x in link}
        assert reached == set(members)


def test_those_that_only_others_join_are_joined_by_the_shortest_pairs() -> None:
    at_m = np.array([[0.0, 0], [1, 0], [2, 0], [4, 0], [0, 9], [1, 9], [5, 5]])
    groups = ((0, 1, 2, 3, 6), (4, 5))
    line = Topology(at_m, np.zeros((2, 2)), groups, ((0, 1), (1, 2), (2, 3), (4, 5)))
    assert line.among(range(7)) == line.directed()
    assert line.among([0, 2, 3, 4]) == ((0, 2), (2, 0), (2, 3), (3, 2))
    assert line.among([0, 3, 4, 5]) == ((0, 3), (3, 0), (4, 5), (5, 4))
    assert line.among([0, 6]) == (), "nobody has ever joined these two"
    assert line.among([]) == Topology(at_m, np.zeros((2, 2)), groups).among(range(7)) == ()
    assert (0, 6) in line.audible()
    assert (0, 4) not in line.audible()
    assert len(line.audible()) == 5 * 4 + 2
    assert Topology(at_m, np.zeros((2, 2)), groups).audible() == ()


@given(seed=st.integers(0, 2**32), devices=st.integers(1, 12), data=st.data())
def test_whoever_takes_part_can_reach_the_rest_of_the_cluster(
    seed: int, devices: int, data: Any
) -> None:
    at_m = np.random.default_rng(seed).uniform(0, 100, (devices, 2))
    groups = clusters(devices, data.draw(st.integers(1, devices)))
    reach = data.draw(st.sampled_from([0.0, 10.0, 50.0]))
    tree = Topology(
        at_m, np.zeros((len(groups), 2)), groups, link_devices(at_m, groups, reach=reach)
    )
    members = data.draw(st.sets(st.sampled_from(range(devices))))
    links = set(tree.among(members))
    assert links <= set(tree.audible())
    assert {p for p in tree.directed() if members.issuperset(p)} <= links
    assert links == {(b, a) for a, b in links}
    assert members.issuperset(chain.from_iterable(links))
    for group in groups:
        here = sorted(members.intersection(group))
        reached = set(here[:1])
        for _ in here:
            reached |= {b for a, b in links if a in reached}
        assert reached == set(here)


@pytest.mark.parametrize("name", ASSOCIATIONS)
def test_every_association_parts_the_devices(name: str) -> None:
    groups = clusters(7, 3)
    got = ASSOCIATIONS[name](groups, np.random.default_rng(1).random((7, 3)))
    assert len(got) == 3
    assert sorted(chain(*got)) == list(range(7))


def test_best_channel_may_leave_an_edge_empty() -> None:
    gain = np.array([[1.0, 2, 0], [3, 1, 0], [0, 5, 0]])
    assert ASSOCIATIONS["best-channel"](clusters(3, 3), gain) == ((1,), (0, 2), ())
    assert ASSOCIATIONS["cluster"](clusters(3, 3), gain) == ((0,), (1,), (2,))
