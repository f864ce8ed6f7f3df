"""The tree of a run: from settings to places, radios and clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hffm_flower.config import RunConfig
from hffm_flower.d2d import PlanOptions
from hffm_flower.errors import ConfigError
from hffm_flower.schedule import METHODS
from hffm_flower.topology import clusters
from hffm_flower.tree import CROWDED_M, USUAL_AREA_M, groups_of, plan_options, plant, radio_of
from hffm_flower.wireless.radio import Radio
from hffm_flower.wireless.rate import Backhaul
from tests.support.exchange import coordinates


def settings(**changes: Any) -> RunConfig:
    return RunConfig().with_values(**{"tree__devices": 7, "tree__edges": 3, **changes})


def test_devices_and_edges_stand_where_the_seed_puts_them() -> None:
    one, same, other = (plant(settings(seed=s)) for s in (5, 5, 6))
    assert one.topology.positions_m.shape == (7, 2)
    assert one.topology.edge_positions_m.shape == (3, 2)
    assert np.array_equal(one.topology.positions_m, same.topology.positions_m)
    assert not np.array_equal(one.topology.positions_m, other.topology.positions_m)
    assert np.array_equal(one.block(3).uplink_gain, same.block(3).uplink_gain)
    assert one.topology.clusters == clusters(7, 3)


@pytest.mark.parametrize(("edges", "side_m"), [(3, USUAL_AREA_M), (49, CROWDED_M * 7)])
def test_a_crowd_has_more_room(edges: int, side_m: float) -> None:
    at_m = plant(settings(tree__devices=60, tree__edges=edges)).topology.edge_positions_m
    assert at_m.max() <= side_m
    assert at_m.max() > 0.6 * side_m
    small = plant(settings(radio__area_m=2000.0, radio__placement="uniform")).topology
    assert max(small.positions_m.max(), small.edge_positions_m.max()) <= 2000.0


@pytest.mark.parametrize("method", METHODS)
def test_who_averages_together(method: str) -> None:
    config = settings(method=method)
    network = plant(config)
    flat = method in ("star", "central")
    expected = (tuple(range(7)),) if flat else clusters(7, 3)
    assert groups_of(config, network) == expected
    assert network.topology.clusters == clusters(7, 3)  # of access points, at a star


def test_a_star_may_have_fewer_devices_than_access_points() -> None:
    network = plant(settings(method="star", tree__devices=2, tree__edges=10))
    assert (network.topology.devices, network.topology.edges) == (2, 2)


def test_only_a_plan_needs_links() -> None:
    assert plant(settings()).topology.links == ()
    tree = plant(settings(d2d__plan="relay", radio__links="tree")).topology
    assert len(tree.links) == 7 - 3
    more = plant(settings(d2d__plan="gossip", radio__reach=1e6)).topology
    assert set(more.links) > set(tree.links)


def test_devices_may_choose_the_edge_that_they_hear_best() -> None:
    config = settings(radio__placement="uniform", radio__associate="best-channel")
    network = plant(config)
    groups = groups_of(config, network)
    assert sorted(d for group in groups for d in group) == list(range(7))
    apart_m = np.linalg.norm(
        network.topology.positions_m[:, None] - network.topology.edge_positions_m, axis=-1
    )
    assert network.topology.edge_of().tolist() == apart_m.argmin(axis=1).tolist()


def test_coordinates_are_used_whatever_the_placement(tmp_path: Path) -> None:
    devices = [(float(k), 2.0 * k, k % 2) for k in range(4)]
    path = coordinates(tmp_path / "here.csv", devices, [(0.0, 9.0), (7.0, 9.0)])
    config = settings(tree__devices=4, tree__edges=2, radio__coordinates=str(path))
    network = plant(config)
    assert network.topology.positions_m.tolist() == [[x, y] for x, y, _ in devices]
    assert groups_of(config, network) == ((0, 2), (1, 3))
    with pytest.raises(ConfigError, match=r"4 devices and 2 edges, but tree.devices = 5") as error:
        plant(config.with_values(tree__devices=5))
    assert error.value.key == "radio.coordinates"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"radio__placement": "moon"}, "unknown placement 'moon'"),
        ({"radio__placement": "coordinates"}, "needs a file"),
        ({"radio__coordinates": "nowhere.csv"}, "cannot read the coordinates"),
        ({"radio__channel": "wire"}, "unknown channel 'wire'"),
        ({"radio__sharing": "tdma"}, "unknown sharing 'tdma'"),
        ({"radio__associate": "friend"}, "unknown association 'friend'"),
        ({"radio__links": "rope", "d2d__plan": "relay"}, "unknown link rule 'rope'"),
        ({"radio__links": "nearest", "radio__reach": 1.5, "d2d__plan": "relay"}, "whole number"),
        ({"radio__channel": "uma", "d2d__plan": "relay"}, "between a base station and a device"),
        ({"radio__d2d_channel": "umi", "d2d__plan": "relay"}, "name another one"),
        ({"radio__d2d_channel": "rope"}, "unknown channel 'rope'"),
    ],
)
def test_what_cannot_be_planted(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plant(settings(**changes))


def test_a_base_stations_channel_goes_with_another_one_between_devices() -> None:
    tree = settings(
        radio__channel="uma", radio__d2d_channel="log-distance exponent=4", d2d__plan="relay"
    )
    assert plant(tree).topology.links
    assert not plant(settings(radio__channel="uma")).topology.links


def test_a_radio_is_in_si_units() -> None:
    config = settings(
        radio__tx_power_mw=100.0, radio__rx_power_mw=50.0, radio__edge_tx_power_mw=2000.0,
        radio__bandwidth_khz=200.0, radio__noise_figure_db=7.0, radio__backhaul_mbit_s=8.0,
        radio__backhaul_delay_ms=20.0, radio__backhaul_power_mw=300.0, radio__channel="umi",
        radio__device_gflop_s=2.0, radio__device_cpu_mhz=1500.0, radio__device_kappa=2e-28,
        radio__device_battery_j=50.0, radio__sharing="fixed",
        radio__d2d_channel="rician factor-db=3", radio__amplifier_efficiency=0.5,
    )  # fmt: skip
    assert radio_of(config) == Radio(
        channel="umi", d2d_channel="rician factor-db=3", amplifier_efficiency=0.5, sharing="fixed",
        tx_power_w=0.1, rx_power_w=0.05, edge_tx_power_w=2.0,
        bandwidth_hz=2e5, d2d_bandwidth_hz=2e5, noise_figure_db=7.0,
        backhaul=Backhaul(rate_bit_s=8e6, delay_s=0.02), backhaul_power_w=0.3, flops_per_s=2e9,
        cpu_hz=1.5e9, kappa=2e-28, battery_j=50.0,
    )  # fmt: skip
    assert radio_of(config.with_values(radio__d2d_bandwidth_khz=10.0)).d2d_bandwidth_hz == 1e4


def test_options_of_the_plans() -> None:
    config = settings(d2d__head="energy", d2d__summing=False, d2d__accuracy=0.25, d2d__segments=5)
    assert plan_options(config) == PlanOptions(
        head="energy", summing=False, accuracy=0.25, segments=5
    )
