"""The published mode against an independent computation on the same draws."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hffm_flower.errors import ConfigError
from hffm_flower.wireless.case_study import MODES, CaseStudy, Fix, fixes_of
from hffm_flower.wireless.draws import Draws, draw_case_study, read_draws
from hffm_flower.wireless.published import Priced, price

ORACLE = Path(__file__).parents[2] / "data" / "network_oracle.json"
CLOSE = 1e-9

FOUND = json.loads(ORACLE.read_text(encoding="utf-8"))
RUNS: list[dict[str, Any]] = [*FOUND["runs"], FOUND["readme_match"]]


@pytest.fixture(scope="module")
def all_draws(tmp_path_factory: pytest.TempPathFactory) -> tuple[Draws, ...]:
    path = tmp_path_factory.mktemp("draws") / "all.json"
    path.write_text(json.dumps({"runs": RUNS}), encoding="utf-8")
    return read_draws(path)


@pytest.mark.parametrize("index", range(len(RUNS)))
def test_every_published_figure(index: int, all_draws: tuple[Draws, ...]) -> None:
    want, draws = RUNS[index], all_draws[index]
    got = price(draws)
    assert draws.seed == want["seed"]
    assert got.uplink_rate_bit_s / 1e3 == pytest.approx(want["uplink_rate_kbps"], rel=CLOSE)
    assert got.uplink_s == pytest.approx(want["uplink_latency_s"], rel=CLOSE)
    names = [f"{a}->{b}" for a, b in draws.pairs]
    assert set(names) == set(want["d2d_rate_kbps"])
    for values, field in ((got.pair_rate_bit_s / 1e3, "d2d_rate_kbps"),
                          (got.pair_s, "d2d_latency_s")):  # fmt: skip
        assert values == pytest.approx([want[field][n] for n in names], rel=CLOSE)
    for edge, relay in enumerate(got.relays):
        found = (relay.up_s, relay.down_s, relay.up_j * 1e3, relay.down_j * 1e3)
        assert found == pytest.approx(
            [want[f][str(edge)] for f in ("relay_latency_up_s", "relay_latency_down_s",
                                          "relay_energy_up_mJ", "relay_energy_down_mJ")],
            rel=CLOSE,
        )  # fmt: skip
    assert set(got.methods) == set(want["methods"])
    for method, cost in want["methods"].items():
        assert got.methods[method].latency_s == pytest.approx(cost["latency_s"], rel=CLOSE)
        assert got.methods[method].energy_j == pytest.approx(cost["energy_table"], rel=CLOSE)
        assert got.methods[method].energy_j * 1e3 == pytest.approx(cost["energy_raw"], rel=CLOSE)


def test_the_published_table(all_draws: tuple[Draws, ...]) -> None:
    methods = price(all_draws[-1]).methods
    table: dict[str, list[float]] = FOUND["readme_table"]
    assert set(table) == set(methods)
    for method, printed in table.items():
        costs = (methods[method].latency_s, methods[method].energy_j)
        truncated = [math.floor(c * 100 + 1e-6) / 100 for c in costs]
        assert truncated == pytest.approx(printed), method


FIXED = {
    "": "12.10/387.2 3.60/59.3 1.95/14.1 9.59/107.7 5.05/71.4 8.79/66.9 3.61/27.2",
    "noise-hz": "12.10/387.2 12.97/131.2 7.37/34.8 18.96/179.6 14.42/143.3 12.80/90.9 8.68/48.8",
    "unit-fading": "12.10/387.2 3.88/62.6 2.06/14.9 9.87/111.0 5.33/74.7 8.95/67.9 3.73/28.1",
    "head-uplink": "12.10/387.2 3.60/59.3 1.95/14.1 9.59/107.7 5.05/71.4 9.06/66.6 3.68/27.2",
    "equal-bandwidth":
        "12.10/387.2 3.60/59.3 13.02/96.3 9.59/107.7 5.05/71.4 17.02/131.8 13.99/105.3",
}  # fmt: skip
"""Single fixes on seed 49: latency [s] / energy [J] of the methods in this order."""
ORDER = ("star", "edge_only", "edge_only_d2d", "hffm_2", "hffm_8", "hffm_d2d_2", "hffm_d2d_8")


@pytest.mark.parametrize("fix", FIXED)
def test_single_fixes(fix: str, all_draws: tuple[Draws, ...]) -> None:
    (seed_49,) = [d for d, run in zip(all_draws, RUNS, strict=True) if run["random_seed"] == 49]
    got = price(seed_49, fixes=fixes_of("published", [fix] if fix else [])).methods
    assert tuple(got) == ORDER
    assert " ".join(f"{c.latency_s:.2f}/{c.energy_j:.1f}" for c in got.values()) == FIXED[fix]


def test_the_other_fixes_by_hand(all_draws: tuple[Draws, ...]) -> None:
    draws, study = all_draws[0], CaseStudy()
    plain = price(draws)

    def fixed(fix: Fix) -> Priced:
        return price(draws, fixes={fix})

    power = fixed(Fix.EQUAL_POWER)
    assert power.uplink_s.tolist() == plain.uplink_s.tolist()
    assert power.methods["edge_only"].energy_j == pytest.approx(plain.uplink_s.sum() * 1.0)
    assert power.relays[0].up_j == pytest.approx(plain.relays[0].up_j / 3)
    down = fixed(Fix.DOWNLINK)
    assert down.methods["star"].latency_s == pytest.approx(24.2)
    assert down.methods["star"].energy_j == pytest.approx(774.4)
    slowest = [plain.uplink_s[list(c)].max() for c in draws.layout.clusters]
    assert down.methods["hffm_2"].latency_s == pytest.approx(12.1 + 2 * max(slowest))
    assert down.methods["edge_only"].energy_j == pytest.approx(
        0.6 * (plain.uplink_s.sum() + sum(slowest))
    )
    gained = [
        12.1 * 0.8 + 0.6 * plain.uplink_s[h] + r.down_j
        for h, r in zip(draws.heads, plain.relays, strict=True)
    ]
    assert down.methods["hffm_d2d_8"].energy_j == pytest.approx(
        plain.methods["hffm_d2d_8"].energy_j + sum(gained) / 8
    )
    for method, cost in fixed(Fix.COMPUTE).methods.items():
        assert cost.latency_s == pytest.approx(plain.methods[method].latency_s + 2.0)
        assert cost.energy_j == pytest.approx(plain.methods[method].energy_j + 40 * 0.2)
    ratio = study.true_payload_bits / study.payload_bits
    true = fixed(Fix.TRUE_PAYLOAD)
    assert true.uplink_s == pytest.approx(plain.uplink_s * ratio)
    assert true.methods["star"].latency_s == pytest.approx(0.1 + 12 * ratio)


def test_modes() -> None:
    assert set(Fix) == {
        "noise-hz", "unit-fading", "head-uplink", "equal-power", "equal-bandwidth", "downlink",
        "compute", "true-payload",
    }  # fmt: skip
    assert fixes_of("published") == MODES["published"] == frozenset()
    assert fixes_of("corrected") == fixes_of("published", list(Fix)) == frozenset(Fix)
    assert fixes_of("published", ["downlink"]) == {Fix.DOWNLINK}
    with pytest.raises(ConfigError, match=r"unknown fix 'noise'.*allowed: noise-hz, unit-fading"):
        fixes_of("published", ["noise"])
    with pytest.raises(ConfigError, match=r"unknown mode 'publised'.*did you mean 'published'"):
        fixes_of("publised")


def test_constants_from_words() -> None:
    assert CaseStudy.of([]) == CaseStudy()
    assert CaseStudy.of(["uplink-hz=5e6", "kappa=0"]) == CaseStudy(uplink_hz=5e6, kappa=0)
    assert CaseStudy.of(["reference_gain_db=-40"]).reference_gain_db == -40
    for words, message in {
        "uplink-khz=1": "unknown constant 'uplink-khz'.*did you mean 'uplink-hz'",
        "uplink-hz=wide": "'uplink-hz=wide': expected uplink-hz=NUMBER",
        "uplink-hz": "expected uplink-hz=NUMBER",
        "uplink-hz=0": "uplink_hz = 0; it must be finite and above 0",
        "d2d-hz=nan": "d2d_hz = nan",
        "uplink-energy-power-w=-1": "uplink_energy_power_w = -1",
        "noise-dbm-hz=inf": "noise_dbm_hz = inf; it must be finite",
        "backhaul-delay-s=-1": "backhaul_delay_s = -1; it must be finite and >= 0",
    }.items():
        with pytest.raises(ConfigError, match=message):
            CaseStudy.of([words])


@pytest.mark.parametrize("name", [f.name for f in fields(CaseStudy)])
def test_every_constant_counts_in_some_mode(name: str) -> None:
    """With three times a constant, some figure changes, with no fix or with all."""
    draws = draw_case_study(1)
    other = replace(CaseStudy(), **{name: 3 * getattr(CaseStudy(), name)})
    if name == "link_radius_m":
        other = replace(CaseStudy(), link_radius_m=1e4)
    assert any(
        price(draws, fixes=fixes).methods != price(draws, fixes=fixes, study=other).methods
        for fixes in MODES.values()
    )


def test_a_cluster_of_one_needs_no_d2d(all_draws: tuple[Draws, ...]) -> None:
    base = all_draws[0]
    layout = replace(
        base.layout,
        positions_m=base.layout.positions_m[:1],
        edge_positions_m=base.layout.edge_positions_m[:1],
        clusters=((0,),),
    )
    alone = Draws(1, layout, (0,), base.uplink_fading[:1], (), np.empty(0))
    got = price(alone)
    assert (got.relays[0].up_s, got.relays[0].down_j) == (0.0, 0.0)
    assert got.methods["hffm_d2d_2"].latency_s == pytest.approx((12.1 + got.uplink_s[0]) / 2)
    assert got.methods["star"].energy_j == pytest.approx(12.1 * 0.8)


def test_two_in_one_place() -> None:
    draws = draw_case_study(1)
    positions = draws.layout.positions_m.copy()
    positions[1] = positions[0]
    with pytest.raises(ConfigError, match="distance_m = 0"):
        price(replace(draws, layout=replace(draws.layout, positions_m=positions)))
