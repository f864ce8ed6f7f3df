"""``hffm network`` and ``hffm topology``, in process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hffm_flower.cli import main

ORACLE = Path(__file__).parents[2] / "data" / "network_oracle.json"


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hffm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hffm", *words])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        code = exit_.value.code
        return (code if isinstance(code, int) else 0), out, " ".join(err.split())

    return run


def test_json_of_a_file_is_in_its_order_and_agrees(hffm: Any) -> None:
    code, out, err = hffm("network", "--mode", "published", "--draws", str(ORACLE), "--json")
    assert (code, err) == (0, "")
    got = json.loads(out)
    want = json.loads(ORACLE.read_text(encoding="utf-8"))["runs"]
    assert (got["mode"], got["fixes"]) == ("published", [])
    assert [r["seed"] for r in got["runs"]] == [r["seed"] for r in want]
    for run, known in zip(got["runs"], want, strict=True):
        assert run["methods"].keys() == known["methods"].keys()
        for method, cost in run["methods"].items():
            assert set(cost) == {"latency_s", "energy_j"}
            expected = known["methods"][method]
            assert cost["latency_s"] == pytest.approx(expected["latency_s"], rel=1e-9)
            assert cost["energy_j"] == pytest.approx(expected["energy_table"], rel=1e-9)


def test_seeds_repeat_and_more_seeds_go_on(hffm: Any) -> None:
    few = json.loads(hffm("network", "--seeds", "2", "--json")[1])["runs"]
    more = json.loads(hffm("network", "--seeds", "3", "--json")[1])["runs"]
    assert [r["seed"] for r in more] == [1, 2, 3]
    assert more[:2] == few
    assert more[2] != few[1]


def test_fixes_and_modes(hffm: Any) -> None:
    one = json.loads(hffm("network", "--seeds", "1", "--fix", "downlink, noise-hz", "--json")[1])
    assert one["fixes"] == ["downlink", "noise-hz"]
    assert one["runs"][0]["methods"]["star"]["latency_s"] == pytest.approx(24.2)
    code, out, _ = hffm("network", "--mode", "corrected", "--seeds", "1", "--json")
    assert code == 0
    assert len(json.loads(out)["fixes"]) == 8


def test_constants_can_be_set(hffm: Any) -> None:
    words = ("network", "--seeds", "1", "--json", "--set", "backhaul-rate-bit-s=48e6")
    runs = json.loads(hffm(*words)[1])["runs"]
    assert runs[0]["methods"]["star"]["latency_s"] == pytest.approx(1.1)


def test_the_table(hffm: Any) -> None:
    code, out, _ = hffm("network", "--draws", str(ORACLE))
    assert code == 0
    assert "network_oracle.json; fixes: none" in " ".join(out.split())
    star = next(line.split() for line in out.splitlines() if line.strip().startswith("star"))
    assert star == ["star", "12.10", "12.1..12.1", "387.2", "387..387"]
    relayed = next(line.split() for line in out.splitlines() if "edge_only_d2d" in line)
    assert relayed[-2:] == ["100/100%", "100/100%"]


def test_a_picture_of_the_topology(hffm: Any) -> None:
    words = ("--placement", "clustered", "--devices", "12", "--edges", "3", "--channel", "umi")
    code, out, _ = hffm("topology", *words, "--associate", "best-channel", "--plot", "a/b.png")
    assert code == 0
    assert "12 devices, 3 edges, clustered" in out
    with Image.open("a/b.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 500
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50
    assert sorted(p.name for p in Path("a").iterdir()) == ["b.png"]


def test_a_picture_of_coordinates(hffm: Any) -> None:
    Path("points.csv").write_text("kind,x_m,y_m\nedge,0,0\ndevice,50,9\n", encoding="utf-8")
    code, out, _ = hffm("topology", "--coordinates", "points.csv")
    assert code == 0
    assert "1 devices, 1 edges, coordinates" in out
    assert Path("topology.png").stat().st_size > 0


def write_bad_draws() -> None:
    runs = json.loads(ORACLE.read_text(encoding="utf-8"))["runs"][:1]
    runs[0]["aggregators"]["0"] = 39
    Path("head.json").write_text(json.dumps({"runs": runs}), encoding="utf-8")
    runs = json.loads(ORACLE.read_text(encoding="utf-8"))["runs"][:1]
    runs[0]["user_positions_m"][1] = runs[0]["user_positions_m"][0]
    Path("one-place.json").write_text(json.dumps({"runs": runs}), encoding="utf-8")
    runs[0]["user_positions_m"][1] = [10**400, 0]
    Path("far.json").write_text(json.dumps({"runs": runs}), encoding="utf-8")
    Path("deep.json").write_text("[" * 100_000, encoding="utf-8")
    Path("folder.png").mkdir()
    Path("points.csv").write_text("kind,x_m\nedge,0\n", encoding="utf-8")
    Path("nan.csv").write_text("kind,x_m,y_m\n\n\nedge,0,nan\n", encoding="utf-8")


BAD = {
    "unknown mode": (["network", "--mode", "fair"], ["'fair'", "published, corrected"]),
    "unknown fix": (
        ["network", "--fix", "noise-hz,noise"],
        ["unknown fix 'noise'", "did you mean 'noise-hz'"],
    ),
    "no file": (["network", "--draws", "none.json"], ["cannot read the draws 'none.json'"]),
    "head elsewhere": (
        ["network", "--draws", "head.json"],
        ["head.json, runs[0]", "head 39 is not in its cluster 0: [0, 1, 2, 3]"],
    ),
    "two in one place": (["network", "--draws", "one-place.json"], ["runs[0]", "distance_m = 0"]),
    "far away": (["network", "--draws", "far.json"], ["user_positions_m[1]", "at most 1e+12"]),
    "nested": (["network", "--draws", "deep.json"], ["deep.json"]),
    "no cost": (["network", "--set", "exponent=1000"], ["seeds 1..20, runs[0]: a cost is inf s"]),
    "half a round": (["network", "--set", "edge-only-rounds=0.5"], ["must be >= 1"]),
    "picture of a folder": (["topology", "--plot", "folder.png"], ["'folder.png' cannot be"]),
    "long name": (["topology", "--plot", f"{'a' * 300}.png"], ["longer than 200 bytes"]),
    "draws and seeds": (["network", "--draws", "x", "--seeds", "3"], ["leave out --seeds"]),
    "no seed": (["network", "--seeds", "0"], ["--seeds 0", "at least 1"]),
    "negative power": (
        ["network", "--set", "uplink-rate-power-w=-1"],
        ["uplink_rate_power_w = -1", "above 0"],
    ),
    "zero bandwidth": (["network", "--set", "uplink-hz=0"], ["uplink_hz = 0", "above 0"]),
    "unknown constant": (["network", "--set", "power=1"], ["unknown constant 'power'"]),
    "unknown placement": (["topology", "--placement", "grid"], ["'grid'", "case-study, uniform"]),
    "unknown channel": (["topology", "--channel", "rice"], ["'rice'", "rayleigh, rician"]),
    "negative power of a device": (["topology", "--tx-power-mw", "-1"], ["tx_power_w = -0.001"]),
    "a band of nothing": (["topology", "--bandwidth-khz", "0"], ["--bandwidth-khz", "0.001<=x"]),
    "missing column": (["topology", "--coordinates", "points.csv"], ["no column y_m"]),
    "devices beside coordinates": (
        ["topology", "--coordinates", "nan.csv", "--devices", "9"],
        ["--devices has no effect"],
    ),
    "NaN": (["topology", "--coordinates", "nan.csv"], ["nan.csv, line 4", "'nan'"]),
    "more edges than devices": (["topology", "--edges", "50"], ["50 edges and 40 devices"]),
    "another format": (["topology", "--plot", "a.jpg"], ["written as .png, not to 'a.jpg'"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, hffm: Any) -> None:
    write_bad_draws()
    words, expected = BAD[name]
    before = sorted(Path().iterdir())
    code, out, err = hffm(*words)
    assert (code, out) == (2, "")
    for part in expected:
        assert part in err
    assert "Traceback" not in err
    assert sorted(Path().iterdir()) == before
