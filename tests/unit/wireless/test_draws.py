from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hffm_flower.errors import ConfigError
from hffm_flower.placement import Site
from hffm_flower.wireless.draws import Draws, draw_case_study, pairs_of, read_draws

GOOD: dict[str, Any] = {
    "seed": 5,
    "server_positions_m": [[0, 0], [1000, 0]],
    "user_positions_m": [[10, 0], [20, 0], [1010, 5]],
    "clusters": {"0": [0, 1], "1": [2]},
    "aggregators": {"0": 1, "1": 2},
    "uplink_fading_ab": {"0": [1, 0], "1": [1, 2], "2": [0, -3]},
    "d2d_fading_ab": {"0->1": [1, 1], "1->0": [2, 1]},
    "methods": "ignored",
}


def written(tmp_path: Path, *runs: object) -> Path:
    path = tmp_path / "draws.json"
    path.write_text(json.dumps({"runs": runs}), encoding="utf-8")
    return path


def test_a_file_is_read_in_its_order(tmp_path: Path) -> None:
    one, two = read_draws(written(tmp_path, GOOD, GOOD | {"seed": 2}))
    assert (one.seed, two.seed) == (5, 2)
    assert one.layout.clusters == ((0, 1), (2,))
    assert one.heads == (1, 2)
    assert one.uplink_fading.tolist() == [1, 5, 9]
    assert one.pairs == ((0, 1), (1, 0))
    assert one.pair_fading.tolist() == [2, 5]


def put(name: str, key: object, value: object) -> Callable[[Any], None]:
    def change(run: Any) -> None:
        run[name][key] = value

    return change


def drop(name: str, key: object = None) -> Callable[[Any], None]:
    def change(run: Any) -> None:
        if key is None:
            del run[name]
        else:
            del run[name][key]

    return change


NAN = float("nan")
BAD: dict[str, tuple[Callable[[Any], None], str]] = {
    "no users": (drop("user_positions_m"), "user_positions_m is missing"),
    "a column short": (put("user_positions_m", 1, [20]), r"user_positions_m\[1\] is \[20\]"),
    "NaN": (put("user_positions_m", 1, [20, NAN]), r"user_positions_m\[1\] is \[20, nan\]"),
    "a word": (put("server_positions_m", 0, ["a", 0]), "expected two numbers of at most"),
    "head elsewhere": (put("aggregators", "0", 2), r"head 2 is not in its cluster 0: \[0, 1\]"),
    "head that is none": (put("aggregators", "0", "1"), "head is '1'; expected a whole number"),
    "no head": (drop("aggregators", "1"), r"aggregators needs the keys 0..1.*\['1'\]"),
    "a cluster more": (put("clusters", "2", [2]), r"clusters needs the keys 0..1.*\['2'\]"),
    "empty cluster": (put("clusters", "1", []), r"clusters\[1\] is \[\]; expected devices"),
    "device twice": (put("clusters", "1", [2, 1]), r"repeated \[1\]"),
    "unknown device": (put("clusters", "1", [7]), r"repeated \[7\], missing \[2\]"),
    "half a device": (put("clusters", "1", [2.5]), "device is 2.5; expected a whole number"),
    "no uplink": (drop("uplink_fading_ab", "2"), r"uplink_fading_ab needs the keys 0..2"),
    "NaN fading": (put("uplink_fading_ab", "0", [NAN, 1]), r"fading of device 0 is \[nan, 1\]"),
    "link to nobody": (put("d2d_fading_ab", "0->9", [1, 1]), "0->9 names an unknown device"),
    "link across": (put("d2d_fading_ab", "0->2", [1, 1]), "missing or extra: 0->2"),
    "link missing": (drop("d2d_fading_ab", "0->1"), "missing or extra: 0->1"),
    "link that is none": (put("d2d_fading_ab", "0-1", [1, 1]), "'0-1' is not of the form 'i->j'"),
    "seed that is none": (lambda run: run.update(seed="x"), "seed is 'x'"),
    "list for a table": (lambda run: run.update(clusters=[]), r"clusters is \[\]; expected a"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_runs_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    change, message = BAD[name]
    run = json.loads(json.dumps(GOOD))
    change(run)
    with pytest.raises(ConfigError, match=rf"draws.json, runs\[1\]: .*{message}"):
        read_draws(written(tmp_path, GOOD, run))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "draws.json is not valid JSON"),
        ("[]", "has no list 'runs'"),
        ('{"runs": []}', "has no list 'runs'"),
        ('{"runs": {}}', "has no list 'runs'"),
        ('{"runs": [3]}', r"runs\[0\]: a run is a table, not 3"),
    ],
)
def test_files_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "draws.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_draws(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the draws .*none\.json"):
        read_draws(tmp_path / "none.json")


def test_own_draws_follow_the_seed() -> None:
    one, again, other = draw_case_study(1), draw_case_study(1), draw_case_study(2)
    assert np.array_equal(one.uplink_fading, again.uplink_fading)
    assert np.array_equal(one.pair_fading, again.pair_fading)
    assert one.heads == again.heads
    assert not np.array_equal(one.uplink_fading, other.uplink_fading)
    assert not np.array_equal(one.layout.positions_m, other.layout.positions_m)
    assert len(one.pairs) == 120
    assert all(h in c for h, c in zip(one.heads, one.layout.clusters, strict=True))


def test_own_fading_has_the_published_power() -> None:
    fading = np.concatenate([draw_case_study(s).pair_fading for s in range(100)])
    assert fading.mean() == pytest.approx(2, abs=0.06)
    heads = [draw_case_study(s).heads[0] for s in range(100)]
    assert {heads.count(h) > 10 for h in range(4)} == {True}


def test_own_draws_at_another_site() -> None:
    drawn = draw_case_study(1, Site(devices=7, edges=3))
    assert drawn.layout.clusters == ((0, 1), (2, 3), (4, 5, 6))
    assert len(drawn.pairs) == 2 + 2 + 6


def test_draws_check_themselves() -> None:
    good = draw_case_study(1)
    for changes, message in (
        ({"heads": good.heads[:-1]}, "9 heads for 10 clusters"),
        ({"uplink_fading": good.uplink_fading[:-1]}, "39 uplinks faded for 40 devices"),
        ({"uplink_fading": -good.uplink_fading}, "uplink fading = -"),
        ({"pair_fading": good.pair_fading[:-1]}, "every ordered pair"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(good, **changes)
    assert isinstance(good, Draws)
    assert pairs_of(((0, 1), (2,))) == ((0, 1), (1, 0))
