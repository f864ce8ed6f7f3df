from __future__ import annotations

import math
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hffm_flower.errors import ConfigError
from hffm_flower.placement import PLACEMENTS, Layout, Site, place, read_layout

GOOD = "kind,x_m,y_m,cluster\nedge,0,0,\nedge,100,100,\ndevice,1,1,1\ndevice,2,2,0\ndevice,3,3,1\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "points.csv"
    path.write_text(GOOD, encoding="utf-8")
    return path


def same(a: Layout, b: Layout) -> bool:
    return (
        np.array_equal(a.positions_m, b.positions_m)
        and np.array_equal(a.edge_positions_m, b.edge_positions_m)
        and a.clusters == b.clusters
    )


@pytest.mark.parametrize("name", PLACEMENTS)
def test_every_device_is_in_one_cluster_and_seeds_repeat(name: str, file: Path) -> None:
    site = Site(devices=23, edges=5, coordinates=file)
    one, again, other = (place(name, site, seed) for seed in (3, 3, 4))
    assert same(one, again)
    assert same(one, other) == (name == "coordinates")
    assert sorted(chain(*one.clusters)) == list(range(len(one.positions_m)))
    assert len(one.clusters) == len(one.edge_positions_m)
    assert np.isfinite(one.positions_m).all()
    assert (one.positions_m >= 0).all()
    assert (one.positions_m <= site.area_m).all()
    if name != "coordinates":
        assert (len(one.positions_m), len(one.edge_positions_m)) == (23, 5)


@settings(max_examples=25)
@given(st.integers(0, 2**40))
def test_the_case_study_keeps_its_distances(seed: int) -> None:
    site = Site()
    drawn = place("case-study", site, seed)
    for a, b in combinations(drawn.edge_positions_m, 2):
        assert math.dist(a, b) >= site.separation_m
    for edge, members in zip(drawn.edge_positions_m, drawn.clusters, strict=True):
        assert len(members) == 4
        for a, b in combinations(drawn.positions_m[list(members)], 2):
            assert math.dist(a, b) <= 2 * site.device_radius_m
        for at in drawn.positions_m[list(members)]:
            assert math.dist(at, edge) <= site.centre_radius_m + site.device_radius_m


def test_an_area_without_room() -> None:
    with pytest.raises(ConfigError, match=r"no room for edge .* larger area or fewer edges"):
        place("case-study", Site(devices=40, edges=20, area_m=900.0), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": 0}, "0 edges"),
        ({"edges": 41}, "41 edges and 40 devices"),
        ({"area_m": 0.0}, "area_m = 0"),
        ({"area_m": math.nan}, "area_m = nan"),
        ({"device_radius_m": -1.0}, "device_radius_m = -1"),
        ({"separation_m": -1.0}, "separation_m = -1"),
    ],
)
def test_a_site_that_cannot_be(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Site(**changes)  # type: ignore[arg-type]


def test_an_unknown_placement() -> None:
    with pytest.raises(ConfigError, match="'grid'; allowed: case-study, uniform, clustered"):
        place("grid", Site(), 1)


def test_coordinates_of_a_file(file: Path) -> None:
    got = read_layout(file)
    assert got.positions_m.tolist() == [[1, 1], [2, 2], [3, 3]]
    assert got.edge_positions_m.tolist() == [[0, 0], [100, 100]]
    assert got.clusters == ((1,), (0, 2))


def test_coordinates_without_clusters(file: Path) -> None:
    rows = "kind,x_m,y_m\nedge,0,0\nedge,9,9\ndevice,1,1\ndevice,2,2\ndevice,3,3\n"
    file.write_text(rows, encoding="utf-8")
    assert read_layout(file).clusters == ((0,), (1, 2))


BAD = {
    "missing column": (GOOD.replace("y_m", "y"), "no column y_m; needed: kind,x_m,y_m"),
    "empty": ("", "no column kind, x_m, y_m"),
    "no device": ("kind,x_m,y_m\nedge,1,1\n", r"device positions have the shape \[0, 2\]"),
    "no edge": ("kind,x_m,y_m\ndevice,1,1\n", r"edge positions have the shape \[0, 2\]"),
    "NaN": (GOOD.replace("1,1,1", "nan,1,1"), r"x_m \(.*line 4\) is 'nan'; expected a finite"),
    "infinite": (GOOD.replace("2,2,0", "2,inf,0"), r"y_m \(.*line 5\) is 'inf'"),
    "a word": (GOOD.replace("2,2,0", "2,two,0"), r"y_m \(.*line 5\) is 'two'"),
    "a short row": (GOOD + "device,4\n", r"y_m \(.*line 7\) is None"),
    "a long row": (GOOD + "device,4,4,0,9\n", r"line 7: more fields than the 4 columns"),
    "a column twice": (GOOD.replace("y_m", "y_m,x_m", 1), "has the column x_m more than once"),
    "unknown kind": (GOOD.replace("device,1", "drone,1"), "'drone'; allowed: device, edge"),
    "unknown cluster": (GOOD.replace("1,1,1", "1,1,2"), r"device 0 is in cluster 2, not 0..1"),
    "half a cluster": (GOOD.replace("1,1,1", "1,1,0.5"), "is '0.5'; expected a whole"),
    "some clusters": (GOOD.replace("1,1,1", "1,1,"), "device 0 is in cluster None"),
    "more edges": ("kind,x_m,y_m\nedge,1,1\nedge,2,2\ndevice,1,1\n", "2 edges are more than 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_coordinates_that_cannot_be_used(name: str, file: Path) -> None:
    text, message = BAD[name]
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_layout(file)


def test_no_file_of_coordinates(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the coordinates .*none.csv"):
        read_layout(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="needs a file"):
        place("coordinates", Site(), 1)
