"""Costs move in the right direction, whatever was drawn and whichever fixes are made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hffm_flower.placement import Layout, Site
from hffm_flower.wireless.case_study import CaseStudy, Fix
from hffm_flower.wireless.draws import Draws, draw_case_study, pairs_of
from hffm_flower.wireless.published import Cost, price

SITE = Site(devices=8, edges=3)
METHODS = ("star", "edge_only", "edge_only_d2d", "hffm_2", "hffm_8", "hffm_d2d_2", "hffm_d2d_8")
ROUND = 1e-12

draws = st.integers(0, 10**6).map(lambda seed: draw_case_study(seed, SITE))
fixes = st.sets(st.sampled_from(list(Fix)))
more = st.floats(1.05, 20.0)
quick = settings(max_examples=40)


def costs(drawn: Draws, chosen: set[Fix], study: CaseStudy | None = None) -> dict[str, Cost]:
    return dict(price(drawn, fixes=chosen, study=study).methods)


def none_falls(before: dict[str, Cost], after: dict[str, Cost]) -> None:
    for method in METHODS:
        assert after[method].latency_s >= before[method].latency_s * (1 - ROUND), method
        assert after[method].energy_j >= before[method].energy_j * (1 - ROUND), method


def scaled(drawn: Draws, factor: float) -> Draws:
    """Everything ``factor`` times as far apart."""
    old = drawn.layout
    far = Layout(old.positions_m * factor, old.edge_positions_m * factor, old.clusters)
    return replace(drawn, layout=far)


@quick
@given(draws, fixes, more)
def test_distance_costs(drawn: Draws, chosen: set[Fix], factor: float) -> None:
    study = CaseStudy(link_radius_m=0.0)  # links: the spanning tree, near and far
    before, after = costs(drawn, chosen, study), costs(scaled(drawn, factor), chosen, study)
    near, far = price(drawn, fixes=chosen), price(scaled(drawn, factor), fixes=chosen)
    assert (far.uplink_rate_bit_s < near.uplink_rate_bit_s).all()
    assert (far.pair_rate_bit_s < near.pair_rate_bit_s).all()
    for method in ("edge_only", "hffm_2", "hffm_8"):
        assert after[method].latency_s > before[method].latency_s
        assert after[method].energy_j > before[method].energy_j
    assert after["star"] == before["star"]  # its leg has a fixed length


@quick
@given(draws, fixes, more)
def test_payload_costs(drawn: Draws, chosen: set[Fix], factor: float) -> None:
    one = CaseStudy()
    large = replace(
        one, payload_bits=factor * one.payload_bits,
        true_payload_bits=factor * one.true_payload_bits,
    )  # fmt: skip
    before, after = costs(drawn, chosen, one), costs(drawn, chosen, large)
    none_falls(before, after)
    assert all(after[m].latency_s > before[m].latency_s for m in METHODS)


@quick
@given(draws, fixes, more)
def test_power_buys_time_and_costs_energy(drawn: Draws, chosen: set[Fix], factor: float) -> None:
    one = CaseStudy()
    loud = replace(
        one, uplink_rate_power_w=factor * one.uplink_rate_power_w,
        d2d_rate_power_w=factor * one.d2d_rate_power_w,
    )  # fmt: skip
    before, after = costs(drawn, chosen, one), costs(drawn, chosen, loud)
    for method in ("edge_only", "hffm_2", "hffm_8"):
        assert after[method].latency_s < before[method].latency_s
        if Fix.EQUAL_POWER in chosen:
            assert after[method].energy_j > before[method].energy_j
    dear = replace(one, uplink_energy_power_w=1.0, d2d_energy_power_w=1.0, cloud_energy_power_w=1.0)
    none_falls(before, costs(drawn, chosen, dear))


@quick
@given(draws, fixes, more)
def test_bandwidth_buys_time(drawn: Draws, chosen: set[Fix], factor: float) -> None:
    one = CaseStudy()
    wide = replace(one, uplink_hz=factor * one.uplink_hz)
    before, after = costs(drawn, chosen, one), costs(drawn, chosen, wide)
    for method in ("edge_only", "hffm_2", "hffm_8"):
        assert after[method].latency_s < before[method].latency_s
        assert after[method].energy_j < before[method].energy_j
    wire = replace(one, backhaul_rate_bit_s=factor * one.backhaul_rate_bit_s)
    after = costs(drawn, chosen, wire)
    for method in ("star", "hffm_2", "hffm_8", "hffm_d2d_2", "hffm_d2d_8"):
        assert after[method].latency_s < before[method].latency_s
        assert after[method].energy_j < before[method].energy_j


@quick
@given(draws, fixes)
def test_rarer_cloud_rounds_cost_less(drawn: Draws, chosen: set[Fix]) -> None:
    got = costs(drawn, chosen)
    assert got["hffm_2"].latency_s > got["hffm_8"].latency_s > got["edge_only"].latency_s
    assert got["hffm_2"].energy_j > got["hffm_8"].energy_j > got["edge_only"].energy_j
    wire_s = (
        0.1
        + (
            CaseStudy().true_payload_bits
            if Fix.TRUE_PAYLOAD in chosen
            else CaseStudy().payload_bits
        )
        / 4e6
    )
    legs = 2 if Fix.DOWNLINK in chosen else 1
    spread = got["hffm_2"].latency_s - got["hffm_8"].latency_s
    assert spread == pytest.approx(legs * wire_s * (1 / 2 - 1 / 8))


@quick
@given(draws, fixes, st.sampled_from([Fix.NOISE_HZ, Fix.UNIT_FADING, Fix.DOWNLINK, Fix.COMPUTE]))
def test_these_fixes_only_ever_add(drawn: Draws, chosen: set[Fix], fix: Fix) -> None:
    assume(fix not in chosen)
    before, after = costs(drawn, chosen), costs(drawn, chosen | {fix})
    for method in ("star", "edge_only", "hffm_2", "hffm_8"):
        assert after[method].latency_s >= before[method].latency_s
        assert after[method].energy_j >= before[method].energy_j


@quick
@given(draws, fixes)
def test_names_of_devices_do_not_matter(drawn: Draws, chosen: set[Fix]) -> None:
    old = drawn.layout
    order = np.random.default_rng(drawn.seed).permutation(len(old.positions_m))
    new = {int(o): n for n, o in enumerate(order)}
    groups = tuple(tuple(new[d] for d in c) for c in old.clusters)
    fading = dict(zip(drawn.pairs, drawn.pair_fading.tolist(), strict=True))
    moved = {(new[a], new[b]): f for (a, b), f in fading.items()}
    pairs = pairs_of(groups)
    other = Draws(
        drawn.seed,
        Layout(old.positions_m[order], old.edge_positions_m, groups),
        tuple(new[h] for h in drawn.heads),
        drawn.uplink_fading[order],
        pairs,
        np.array([moved[p] for p in pairs]),
    )
    for method, cost in costs(drawn, chosen).items():
        again = costs(other, chosen)[method]
        assert (again.latency_s, again.energy_j) == pytest.approx((cost.latency_s, cost.energy_j))


@quick
@given(draws, st.floats(1e-2, 1e2), st.floats(1e-2, 1e2))
def test_dimensions(drawn: Draws, second: float, watt: float) -> None:
    """In other units of time and power, latencies change as one, energies as their product."""
    one = CaseStudy()
    joule = second * watt
    there = replace(
        one,
        uplink_hz=one.uplink_hz / second, d2d_hz=one.d2d_hz / second,
        uplink_rate_power_w=one.uplink_rate_power_w * watt,
        d2d_rate_power_w=one.d2d_rate_power_w * watt,
        uplink_energy_power_w=one.uplink_energy_power_w * watt,
        d2d_energy_power_w=one.d2d_energy_power_w * watt,
        cloud_energy_power_w=one.cloud_energy_power_w * watt,
        noise_dbm_hz=one.noise_dbm_hz + 10 * float(np.log10(joule)),
        backhaul_rate_bit_s=one.backhaul_rate_bit_s / second,
        backhaul_delay_s=one.backhaul_delay_s * second,
        flops_per_s=one.flops_per_s / second, cpu_hz=one.cpu_hz / second,
        kappa=one.kappa * joule * second**2,
    )  # fmt: skip
    before, after = costs(drawn, set(Fix), one), costs(drawn, set(Fix), there)
    for method in METHODS:
        assert after[method].latency_s == pytest.approx(before[method].latency_s * second)
        assert after[method].energy_j == pytest.approx(before[method].energy_j * joule)
