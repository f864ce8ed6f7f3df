from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hffm_flower.errors import ConfigError
from hffm_flower.placement import Site, place
from hffm_flower.routes import shortest_routes
from hffm_flower.topology import ASSOCIATIONS, LINKS
from hffm_flower.wireless.channel import CHANNELS
from hffm_flower.wireless.radio import Radio
from hffm_flower.wireless.scene import PAYLOAD_BITS, Scene, survey

LAYOUT = place("uniform", Site(devices=14, edges=4), 1)


def scene(**words: Any) -> Scene:
    radio = Radio(**words.pop("radio", {}))
    return survey(words.pop("layout", LAYOUT), radio=radio, seed=words.pop("seed", 1), **words)


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("links", LINKS)
@pytest.mark.parametrize("associate", ASSOCIATIONS)
def test_every_combination_makes_a_scene(channel: str, links: str, associate: str) -> None:
    got = scene(radio={"channel": channel}, links=links, associate=associate, reach=2)
    again = scene(radio={"channel": channel}, links=links, associate=associate, reach=2)
    assert got.uplink_rate_bit_s.tolist() == again.uplink_rate_bit_s.tolist()
    assert got.link_rate_bit_s == again.link_rate_bit_s
    assert (got.uplink_rate_bit_s > 0).all()
    assert set(got.link_rate_bit_s) == set(got.topology.directed())
    kept = [h for h in got.heads if h is not None]
    assert [t.root for t in got.trees] == kept
    for head, members in zip(got.heads, got.topology.clusters, strict=True):
        assert head in members if members else head is None


def test_the_seed_draws_the_channel() -> None:
    one, other = scene(seed=1), scene(seed=2)
    assert not np.array_equal(one.uplink_rate_bit_s, other.uplink_rate_bit_s)


def test_sharing_a_cell_costs_its_devices() -> None:
    shared, alone = scene(), scene(radio={"sharing": "fixed"})
    assert (shared.uplink_rate_bit_s < alone.uplink_rate_bit_s).all()
    assert (shared.uplink_rate_bit_s > alone.uplink_rate_bit_s / 4).all()
    assert shared.link_rate_bit_s == alone.link_rate_bit_s


@pytest.mark.parametrize("seed", range(5))
def test_the_head_is_the_fastest_of_its_cluster(seed: int) -> None:
    got = scene(seed=seed, reach=1500.0)
    for tree, members in zip(got.trees, got.topology.clusters, strict=True):
        spent_s = {p: PAYLOAD_BITS / r for p, r in got.link_rate_bit_s.items() if p[0] in members}
        paths = {m: shortest_routes(spent_s, m, nodes=members, towards=True) for m in members}
        as_head_s = {
            m: paths[m].slowest() + PAYLOAD_BITS / got.uplink_rate_bit_s[m] for m in members
        }
        assert as_head_s[tree.root] == min(as_head_s.values())
        assert tree == paths[tree.root]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"radio": {"channel": "nakagami"}}, "unknown channel 'nakagami'; allowed: rayleigh"),
        ({"radio": {"sharing": "tdma"}}, "unknown sharing 'tdma'"),
        ({"radio": {"tx_power_w": -1.0}}, "tx_power_w = -1"),
        ({"radio": {"bandwidth_hz": 0.0}}, "bandwidth_hz = 0"),
        ({"radio": {"noise_figure_db": -3.0}}, "noise_figure_db = -3"),
        ({"associate": "nearest"}, "unknown association 'nearest'"),
        ({"links": "all"}, "unknown link rule 'all'"),
        ({"reach": -1.0}, "reach -1.0"),
    ],
)
def test_what_cannot_be(words: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scene(**words)
