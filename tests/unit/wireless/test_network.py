from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from hffm_flower.errors import ConfigError
from hffm_flower.ledger import LinkClass
from hffm_flower.placement import Layout, Site, place
from hffm_flower.wireless.channel import CHANNELS
from hffm_flower.wireless.network import Network
from hffm_flower.wireless.radio import Radio

LAYOUT = place("uniform", Site(devices=14, edges=4, area_m=500.0), 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tx_power_w", -0.1), ("edge_tx_power_w", 0.0), ("rx_power_w", -1.0),
        ("bandwidth_hz", 0.0), ("d2d_bandwidth_hz", 0.0), ("d2d_bandwidth_hz", math.nan),
        ("backhaul_power_w", -1.0), ("flops_per_s", 0.0), ("cpu_hz", math.inf),
        ("kappa", -1e-28), ("battery_j", 0.0), ("noise_figure_db", math.nan),
    ],
)  # fmt: skip
def test_radios_that_cannot_be(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} = "):
        Radio(**{name: value})  # type: ignore[arg-type]


def test_gains_fit_the_topology() -> None:
    good = Network.of(LAYOUT, Radio(), 1).block(1)
    for gain in (np.ones(5), np.ones((14, 1))):
        with pytest.raises(ConfigError, match="uplink gains for 14 devices"):
            replace(good, uplink_gain=gain)
    with pytest.raises(ConfigError, match="uplink_gain = -1"):
        replace(good, uplink_gain=-np.ones(14))
    with pytest.raises(ConfigError, match="D2D gains"):
        replace(good, link_gain={(0, 1): 1.0})


def test_any_two_of_a_cluster_can_be_joined() -> None:
    network = Network.of(LAYOUT, Radio(), 5, links="tree")
    block, again, other = network.block(3), network.block(3), network.block(4)
    a, b = next(pair for pair in network.topology.audible() if pair not in block.link_gain)
    rate = block.rate_bit_s(f"device/{a}", f"device/{b}")
    assert rate == block.rate_bit_s(f"device/{b}", f"device/{a}")
    assert rate == again.rate_bit_s(f"device/{a}", f"device/{b}")
    assert 0 < rate != other.rate_bit_s(f"device/{a}", f"device/{b}")
    assert set(block.costs([a, b]).link_s) == {(a, b), (b, a)}
    for silent in (
        replace(block, beyond=None),
        Network.of(LAYOUT, Radio(), 5, links=None).block(3),
    ):
        with pytest.raises(ConfigError, match="the two have no D2D link"):
            silent.rate_bit_s(f"device/{a}", f"device/{b}")
    far = next(d for d in range(14) if block.edge_of[d] != block.edge_of[a])
    with pytest.raises(ConfigError, match="the two have no D2D link"):
        block.rate_bit_s(f"device/{a}", f"device/{far}")


def test_devices_may_have_a_channel_of_their_own() -> None:
    same, other = (
        Network.of(LAYOUT, Radio(channel="umi", d2d_channel=d2d), 5).block(1)
        for d2d in ("", "log-distance exponent=2")
    )
    assert same.uplink_gain.tolist() == other.uplink_gain.tolist()
    assert all(same.link_gain[pair] != other.link_gain[pair] for pair in same.link_gain)
    with pytest.raises(ConfigError, match="unknown channel 'rope'"):
        Radio(d2d_channel="rope")


@pytest.mark.parametrize("link", LinkClass)
def test_an_amplifier_draws_more_than_it_radiates(link: LinkClass) -> None:
    whole, half = Radio(), Radio(amplifier_efficiency=0.5)
    times = 1.0 if link is LinkClass.BACKHAUL else 2.0
    assert half.sender_w(link) == times * whole.sender_w(link)
    with pytest.raises(ConfigError, match="efficiency"):
        Radio(amplifier_efficiency=1.5)


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_round_has_a_channel_of_its_own(channel: str) -> None:
    network = Network.of(LAYOUT, Radio(channel=channel), 5, reach=200.0)
    one, again, other = network.block(3), network.block(3), network.block(4)
    assert one.uplink_gain.tolist() == again.uplink_gain.tolist()
    assert one.link_gain == again.link_gain
    assert (one.uplink_gain != other.uplink_gain).all()
    assert all(one.link_gain[pair] != other.link_gain[pair] for pair in one.link_gain)
    assert all(one.link_gain[a, b] == one.link_gain[b, a] for a, b in one.link_gain)
    assert set(one.link_gain) == set(network.topology.directed())
    elsewhere = replace(network, seed=6).block(3)
    assert (one.uplink_gain != elsewhere.uplink_gain).all()
    assert not set(one.uplink_gain) & set(one.link_gain.values())


def test_the_best_channel_is_that_of_the_path() -> None:
    """Not of a draw: the nearest edge, whatever the seed."""
    found = {Network.of(LAYOUT, Radio(), s, associate="best-channel").topology.clusters
             for s in range(5)}  # fmt: skip
    apart = np.linalg.norm(LAYOUT.positions_m[:, None] - LAYOUT.edge_positions_m, axis=2)
    nearest = apart.argmin(axis=1)
    assert found == {tuple(tuple(np.flatnonzero(nearest == e).tolist()) for e in range(4))}


def test_bad_networks() -> None:
    lost = Layout(LAYOUT.positions_m * math.nan, LAYOUT.edge_positions_m, LAYOUT.clusters)
    with pytest.raises(ConfigError, match="device 0 stands at"):
        Network.of(lost, Radio(), 1)
    with pytest.raises(ConfigError, match="unknown association"):
        Network.of(LAYOUT, Radio(), 1, associate="nearest")
    with pytest.raises(ConfigError, match="edge round -1"):
        Network.of(LAYOUT, Radio(), 1).block(-1)


def test_without_links_nobody_hears_another() -> None:
    network = Network.of(LAYOUT, Radio(), 1, links=None)
    assert network.topology.links == ()
    assert network.block(1).link_gain == {}
    assert network.block(1).costs(range(14)).link_s == {}
