"""Prices move in the right direction and with the right power, whatever is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hffm_flower.d2d import Cluster
from hffm_flower.d2d.trees import Candidate, candidate
from hffm_flower.ledger import Phase, Transfer, link_between
from hffm_flower.modules import ModuleKey
from hffm_flower.placement import Site, place
from hffm_flower.routes import shortest_routes
from hffm_flower.topology import Topology
from hffm_flower.wireless.channel import LogDistance, Rayleigh, Rician
from hffm_flower.wireless.energy import Activity, Compute, Receive, Transmit, compute_s
from hffm_flower.wireless.network import Block, Network
from hffm_flower.wireless.pricing import Price, price
from hffm_flower.wireless.radio import Radio
from hffm_flower.wireless.rate import Backhaul, latency_s, noise_w_hz, rate_bit_s
from hffm_flower.wireless.tr38901 import Uma, Umi
from hffm_flower.wireless.units import ratio_of_db

DEVICES, EDGES = 9, 3
SITE = Site(devices=DEVICES, edges=EDGES, area_m=1500.0)
METHODS = ("star", "h-fedfm", "relay", "gossip")
ROUND = 1e-12

seeds = st.integers(0, 10**6)
methods = st.sampled_from(METHODS)
more = st.floats(1.05, 20.0)
sizes = st.lists(st.integers(1, 10**6), min_size=DEVICES, max_size=DEVICES)
works = st.fixed_dictionaries({d: st.floats(0, 1e12) for d in range(DEVICES)})
quick = settings(max_examples=40)


def network(seed: int, radio: Radio | None = None, *, apart: float = 1.0) -> Network:
    got = Network.of(place("uniform", SITE, seed), radio or Radio(), seed, links="nearest")
    old = got.topology
    far = Topology(
        old.positions_m * apart, old.edge_positions_m * apart, old.clusters, old.links
    )  # fmt: skip
    return replace(got, topology=far)


def row(phase: Phase, src: str, dst: str, size: int, step: int = 0) -> Transfer:
    return Transfer(1, phase, step, src, dst, link_between(src, dst), 100, ("head/a",), (size,))


def exchange(block: Topology, method: str, sizes: list[int]) -> list[Transfer]:
    """D2D part of a round: every subtree's sum to a head, or two rounds of gossip."""
    rows = []
    for members in block.clusters:
        inside = {pair: 1.0 for pair in block.directed() if pair[0] in members}
        if method == "gossip":
            rows += [
                row(Phase.EXCHANGE, f"device/{a}", f"device/{b}", sizes[a], step)
                for step in (0, 1)
                for a, b in sorted(inside)
            ]
        if method == "relay":
            tree = shortest_routes(inside, members[0], nodes=members, towards=True)
            depth = max(tree.cost.values())
            rows += [
                row(Phase.EXCHANGE, f"device/{a}", f"device/{b}", sizes[a],
                    round(depth - tree.cost[a]))
                for a, b in tree.parent.items()
            ]  # fmt: skip
    return rows


def transfers(topology: Topology, method: str, sizes: list[int], *, cloud: bool) -> list[Transfer]:
    """One round of a method."""
    rows = exchange(topology, method, sizes)
    for edge, members in enumerate(topology.clusters):
        name = f"edge/{edge}"
        for device in members[:1] if method == "relay" else members:
            for phase in (Phase.DOWN, Phase.UP):
                ends = [("cloud", name), (name, f"device/{device}")]
                if phase is Phase.UP:
                    ends = [(b, a) for a, b in reversed(ends)]
                rows += [row(phase, *e, sizes[device]) for e in ends
                         if method == "star" or "cloud" not in e]  # fmt: skip
        if cloud and method != "star":
            rows.append(row(Phase.COLLECT, name, "cloud", sizes[0]))
            rows.append(row(Phase.PUBLISH, "cloud", name, sizes[0]))
    return rows


def cost(
    net: Network, method: str, sizes: list[int], work: dict[int, float], *, cloud: bool = True
) -> Price:
    return price(transfers(net.topology, method, sizes, cloud=cloud), net.block(1), work)


def costs_more(dear: Price, cheap: Price, *, energy: bool = True) -> None:
    assert cheap.latency_s <= dear.latency_s * (1 + ROUND)
    if energy:
        assert cheap.energy_j < dear.energy_j


@quick
@given(seeds, methods, sizes, works, more)
def test_distance_costs(
    seed: int, method: str, sizes: list[int], work: dict[int, float], factor: float
) -> None:
    near, far = network(seed), network(seed, apart=factor)
    costs_more(cost(far, method, sizes, work), cost(near, method, sizes, work))


@quick
@given(seeds, methods, sizes, works, more)
def test_power_buys_time(
    seed: int, method: str, sizes: list[int], work: dict[int, float], factor: float
) -> None:
    quiet = Radio(rx_power_w=0.0)
    loud = replace(
        quiet, tx_power_w=factor * quiet.tx_power_w, edge_tx_power_w=factor * quiet.edge_tx_power_w
    )
    before = cost(network(seed, quiet), method, sizes, work)
    after = cost(network(seed, loud), method, sizes, work)
    costs_more(before, after, energy=False)
    assert after.energy_by_link_j["uplink"] > before.energy_by_link_j["uplink"]


@quick
@given(seeds, methods, sizes, works, more)
def test_bandwidth_buys_time(
    seed: int, method: str, sizes: list[int], work: dict[int, float], factor: float
) -> None:
    narrow = Radio()
    wide = replace(narrow, bandwidth_hz=factor * narrow.bandwidth_hz)
    before = cost(network(seed, narrow), method, sizes, work)
    costs_more(before, cost(network(seed, wide), method, sizes, work))
    wire = replace(narrow, backhaul=Backhaul(rate_bit_s=factor * narrow.backhaul.rate_bit_s))
    costs_more(before, cost(network(seed, wire), method, sizes, work))
    alone = replace(narrow, sharing="fixed")
    after = cost(network(seed, alone), method, sizes, work)
    assert after.latency_s <= before.latency_s * (1 + ROUND)


@quick
@given(seeds, methods, sizes, works, st.integers(0, DEVICES - 1), more)
def test_payload_costs(
    seed: int, method: str, sizes: list[int], work: dict[int, float], one: int, factor: float
) -> None:
    net = network(seed)
    before = cost(net, method, sizes, work)
    larger = [int(factor * s) + 1 for s in sizes]
    costs_more(cost(net, method, larger, work), before)
    single = [larger[d] if d == one else s for d, s in enumerate(sizes)]
    costs_more(cost(net, method, single, work), before)


@quick
@given(seeds, methods, sizes, works, st.integers(0, DEVICES - 1), st.floats(1e9, 1e13))
def test_training_costs(
    seed: int, method: str, sizes: list[int], work: dict[int, float], one: int, flops: float
) -> None:
    net = network(seed)
    before = cost(net, method, sizes, work)
    after = cost(net, method, sizes, {**work, one: work[one] + flops})
    costs_more(after, before)
    assert after.latency_s <= before.latency_s + flops / net.radio.flops_per_s * (1 + 1e-9)
    assert after.latency_s >= max(work.values()) / net.radio.flops_per_s


@quick
@given(seeds, st.sampled_from(METHODS[1:]), sizes, works)
def test_rarer_cloud_rounds_cost_less(
    seed: int, method: str, sizes: list[int], work: dict[int, float]
) -> None:
    net, rounds = network(seed), 8

    def mean(period: int) -> tuple[float, float]:
        prices = [
            cost(net, method, sizes, work, cloud=t % period == 0) for t in range(1, rounds + 1)
        ]
        return (
            sum(p.latency_s for p in prices) / rounds,
            sum(p.energy_j for p in prices) / rounds,
        )

    means = [mean(period) for period in (1, 2, 4, 8)]
    for often, seldom in pairwise(means):
        assert seldom[0] < often[0]
        assert seldom[1] < often[1]


@quick
@given(seeds, methods, sizes, works)
def test_sums_agree(seed: int, method: str, sizes: list[int], work: dict[int, float]) -> None:
    got = cost(network(seed), method, sizes, work)
    assert sum(got.energy_by_link_j.values()) == pytest.approx(got.energy_j)
    assert sum(got.energy_by_node_j.values()) == pytest.approx(got.energy_j)
    assert got.latency_s <= sum(got.seconds_by_link.values()) * (1 + ROUND)


@quick
@given(seeds, methods, sizes, works, st.floats(1e-2, 1e2), st.floats(1e-2, 1e2))
def test_dimensions(
    seed: int, method: str, sizes: list[int], work: dict[int, float], second: float, watt: float
) -> None:
    """In other units of time and power, latencies change as one, energies as their product."""
    one, joule = Radio(noise_figure_db=30.0), second * watt
    there = replace(
        one, tx_power_w=one.tx_power_w * watt, edge_tx_power_w=one.edge_tx_power_w * watt,
        rx_power_w=one.rx_power_w * watt, backhaul_power_w=one.backhaul_power_w * watt,
        bandwidth_hz=one.bandwidth_hz / second,
        noise_figure_db=one.noise_figure_db + 10 * float(np.log10(joule)) + 100,
        backhaul=Backhaul(one.backhaul.rate_bit_s / second, one.backhaul.delay_s * second),
        flops_per_s=one.flops_per_s / second, cpu_hz=one.cpu_hz / second,
        kappa=one.kappa * joule * second**2,
    )  # fmt: skip
    here = replace(one, noise_figure_db=one.noise_figure_db + 100)
    net = network(seed, one)
    old = net.block(1)
    rows = transfers(net.topology, method, sizes, cloud=True)
    strong = {pair: gain * 1e10 for pair, gain in old.link_gain.items()}
    before, after = (
        price(rows, Block(net.topology, radio, old.uplink_gain * 1e10, strong), work)
        for radio in (here, there)
    )
    assert after.latency_s == pytest.approx(before.latency_s * second)
    assert after.energy_j == pytest.approx(before.energy_j * joule)


def seen(cell: Uma | Umi, *, sight: bool) -> object:
    return ratio_of_db(-cell.loss_db(50.0, sight=sight))


def relayed(*, second: float = 1.0, joule: float = 1.0) -> Candidate:
    """A chain of three towards device 0."""
    key, devices = ModuleKey.parse("adapter/a"), (0, 1, 2)
    links = [(0, 1), (1, 0), (1, 2), (2, 1)]
    cluster = Cluster(
        holds=dict.fromkeys(devices, (key,)), sizes={key: 10},
        link_s=dict.fromkeys(links, second), link_j=dict.fromkeys(links, joule),
        uplink_s=dict.fromkeys(devices, 3 * second), uplink_j=dict.fromkeys(devices, 3 * joule),
        downlink_s=dict.fromkeys(devices, 1.0), downlink_j=dict.fromkeys(devices, 1.0),
        battery_j=dict.fromkeys(devices, 1.0), t=1, seed=1,
    )  # fmt: skip
    return candidate(cluster, {1: 0, 2: 1}, 0, summing=True)


Formula = Callable[[float], object]
RATE = {"gain": 1e-9, "tx_power_w": 0.2, "bandwidth_hz": 1e6, "noise_w_hz": 4e-21}
SECOND = Activity(sent_s=1.0, received_s=1.0)
LAWS: dict[str, tuple[Formula, float]] = {
    "rate in band and noise power": (
        lambda x: rate_bit_s(**RATE | {"bandwidth_hz": 1e6 * x, "gain": 1e-9 * x}), 1.0),
    "rate in power and noise": (
        lambda x: rate_bit_s(**RATE | {"tx_power_w": 0.2 * x, "noise_w_hz": 4e-21 * x}), 0.0),
    "rate in gain and power": (
        lambda x: rate_bit_s(**RATE | {"tx_power_w": 0.2 * x, "gain": 1e-9 / x}), 0.0),
    "noise by 10 dB": (lambda x: noise_w_hz(10.0 * np.log10(x)), 1.0),
    "latency in bits": (lambda x: latency_s(1e6 * x, 1e3), 1.0),
    "latency in rate": (lambda x: latency_s(1e6, 1e3 * x), -1.0),
    "wire in bits": (lambda x: Backhaul(1e6, 0.0).latency_s(1e6 * x), 1.0),
    "wire in delay": (lambda x: Backhaul(1e6, 0.1 * x).latency_s(0.0), 1.0),
    "sending in time": (lambda x: Transmit().energy_j(Activity(sent_s=3.0 * x)), 1.0),
    "sending in power": (lambda x: Transmit(0.2 * x).energy_j(SECOND), 1.0),
    "sending in efficiency": (lambda x: Transmit(0.2, 1 / x).energy_j(SECOND), 1.0),
    "receiving in time": (lambda x: Receive().energy_j(Activity(received_s=3.0 * x)), 1.0),
    "receiving in power": (lambda x: Receive(0.1 * x).energy_j(SECOND), 1.0),
    "cycles": (lambda x: Compute().energy_j(Activity(cycles=1e9 * x)), 1.0),
    "clock": (lambda x: Compute(1e9 * x).energy_j(Activity(cycles=1e9)), 2.0),
    "capacitance": (lambda x: Compute(1e9, 1e-28 * x).energy_j(Activity(cycles=1e9)), 1.0),
    "training in operations": (lambda x: compute_s(1e12 * x, 1e10), 1.0),
    "training in speed": (lambda x: compute_s(1e12, 1e10 * x), -1.0),
    "log-distance": (lambda x: LogDistance(exponent=3.5).path_gain(50.0 * x), -3.5),
    "rayleigh": (lambda x: Rayleigh().path_gain(50.0 * x), -3.0),
    "rician": (lambda x: Rician().path_gain(50.0 * x), -3.0),
    "UMa in carrier, seen": (lambda x: seen(Uma(3.5e9 * x), sight=True), -2.0),
    "UMa in carrier, hidden": (lambda x: seen(Uma(3.5e9 * x), sight=False), -2.0),
    "UMi in carrier, seen": (lambda x: seen(Umi(3.5e9 * x), sight=True), -2.0),
    "UMi in carrier, hidden": (lambda x: seen(Umi(3.5e9 * x), sight=False), -2.13),
    "relay in link and uplink times": (lambda x: relayed(second=x).latency_s, 1.0),
    "relay in link and uplink energies": (lambda x: relayed(joule=x).energy_j, 1.0),
}  # fmt: skip
"""Formula of a factor -> power of the factor by which it grows."""


@pytest.mark.parametrize("name", LAWS)
@given(factor=st.floats(1.0, 1e3))
def test_formulas_scale(name: str, factor: float) -> None:
    formula, power = LAWS[name]
    assert formula(factor) == pytest.approx(np.asarray(formula(1.0)) * factor**power)
