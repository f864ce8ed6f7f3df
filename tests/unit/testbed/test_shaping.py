"""Links get the rates of the radio model, drawn anew for every edge round."""

from __future__ import annotations

import itertools

import pytest

from hffm_flower.config import RunConfig
from hffm_flower.ledger import LinkClass, Phase, Transfer
from hffm_flower.testbed.shaping import cell_links, modelled_s
from hffm_flower.tree import plant
from hffm_flower.wireless.network import Network
from hffm_flower.wireless.pricing import price


def network(**settings: object) -> Network:
    base = {"tree.devices": 6, "tree.edges": 2, "d2d.plan": "relay", **settings}
    return plant(RunConfig.load(base=base))


def test_every_link_of_a_cell_has_its_share() -> None:
    net = network()
    block, links = net.block(3), cell_links(net, 1, 3)
    members = net.topology.clusters[1]
    for device in members:
        up, down = (f"device/{device}", "edge/1"), ("edge/1", f"device/{device}")
        assert links[up].rate_bit_s == block.rate_bit_s(*up, sharers=3)
        assert links[down].rate_bit_s == block.rate_bit_s(*down, sharers=3)
    inside = list(itertools.permutations(members, 2))  # also those that have no link yet
    for a, b in inside:
        ends = f"device/{a}", f"device/{b}"
        assert links[ends].rate_bit_s == block.rate_bit_s(*ends, sharers=2)
    assert len(links) == 2 + 2 * 3 + len(inside)
    assert not any(quality.loss or quality.cut for quality in links.values())


def test_the_backhaul_is_as_it_is_set() -> None:
    links = cell_links(network(**{"radio.backhaul-mbit-s": 7, "radio.backhaul-delay-ms": 30}), 0, 1)
    for ends in (("edge/0", "cloud"), ("cloud", "edge/0")):
        assert (links[ends].rate_bit_s, links[ends].delay_s) == (7e6, 0.03)


def test_fading_draws_every_round_anew() -> None:
    net = network()
    one, again, other = cell_links(net, 0, 1), cell_links(net, 0, 1), cell_links(net, 0, 2)
    assert one == again
    radio = [ends for ends in one if "cloud" not in ends]
    assert all(one[ends] != other[ends] for ends in radio)


def test_bands_that_are_not_shared() -> None:
    net = network(**{"radio.sharing": "fixed"})
    ends = f"device/{net.topology.clusters[0][0]}", "edge/0"
    assert cell_links(net, 0, 1)[ends].rate_bit_s == net.block(1).rate_bit_s(*ends)


def test_without_d2d_devices_have_no_links_among_themselves() -> None:
    links = cell_links(network(**{"d2d.plan": "none"}), 0, 1)
    assert len(links) == 2 + 2 * 3


def test_the_modelled_time_is_the_price_of_the_transfer() -> None:
    """Where as many send as share the band: all of a cell at once."""
    net = network()
    members = net.topology.clusters[0]
    rows = [
        Transfer(
            2, Phase.UP, 0, f"device/{k}", "edge/0", LinkClass.UPLINK, 0, ("head/a",), (10**6,)
        )
        for k in members
    ]
    times = [modelled_s(net, (f"device/{k}", "edge/0"), 2, 10**6) for k in members]
    assert price(rows, net.block(2), {}).latency_s == pytest.approx(max(times))


def test_a_message_over_the_backhaul_takes_its_delay_besides() -> None:
    net = network(**{"radio.backhaul-mbit-s": 8, "radio.backhaul-delay-ms": 30})
    assert modelled_s(net, ("edge/0", "cloud"), 1, 10**6) == pytest.approx(1.03)
