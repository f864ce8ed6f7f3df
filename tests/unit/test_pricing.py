"""Small cases by hand: 1 Mbit at 1 Mbit/s is a second."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hffm_flower.errors import ConfigError
from hffm_flower.ledger import LinkClass, Phase, Transfer, link_between
from hffm_flower.topology import Topology
from hffm_flower.wireless.network import Block, Hop
from hffm_flower.wireless.pricing import Price, price
from hffm_flower.wireless.radio import Radio
from hffm_flower.wireless.rate import Backhaul, noise_w_hz

MBIT = 125_000
WIRE = Backhaul(rate_bit_s=1e6, delay_s=0.1)
RADIO = Radio(tx_power_w=2.0, edge_tx_power_w=4.0, rx_power_w=0.5, backhaul=WIRE,
              backhaul_power_w=3.0, flops_per_s=10.0, cpu_hz=100.0, kappa=1e-3)  # fmt: skip
FIXED = replace(RADIO, sharing="fixed")
AT = Topology(
    np.arange(12.0).reshape(6, 2), np.zeros((2, 2)), ((0, 1, 2, 5), (3, 4)),
    ((0, 1), (1, 2), (2, 5), (3, 4)),
)  # fmt: skip
ONE_W_GAIN = noise_w_hz() * 1e6
"""Gain by which a sender of 1 W has a signal as strong as the noise in 1 MHz."""


def block(radio: Radio = RADIO, *, snr: dict[int, float] | None = None) -> Block:
    """Every device reaches a signal as strong as the noise, but those in ``snr``."""
    levels = np.array([(snr or {}).get(d, 1.0) for d in range(AT.devices)])
    gain = ONE_W_GAIN / radio.tx_power_w
    return Block(AT, radio, levels * gain, dict.fromkeys(AT.directed(), gain))


def row(
    phase: Phase, src: str, dst: str, *, step: int = 0, mbit: float = 1.0, **more: Any
) -> Transfer:
    parts = ("head/a",), (round(mbit * MBIT),)
    return replace(Transfer(1, phase, step, src, dst, link_between(src, dst), 0, *parts), **more)


def up(device: int, **more: Any) -> Transfer:
    return row(Phase.UP, f"device/{device}", f"edge/{int(device in (3, 4))}", **more)


def d2d(a: int, b: int, **more: Any) -> Transfer:
    return row(more.pop("phase", Phase.EXCHANGE), f"device/{a}", f"device/{b}", **more)


def cost(*rows: Transfer, on: Block | None = None, work: dict[int, float] | None = None) -> Price:
    return price(rows, on or block(), work or {})


def test_nothing_costs_nothing() -> None:
    got = cost()
    assert (got.latency_s, got.energy_j, got.energy_by_node_j) == (0.0, 0.0, {})
    assert set(got.energy_by_link_j) == {*LinkClass, "compute"} == set(got.seconds_by_link)


def test_a_bit_is_an_eighth_of_bytes_and_headers() -> None:
    assert cost(up(0)).latency_s == pytest.approx(1.0)
    assert cost(up(0, header_bytes=MBIT)).latency_s == pytest.approx(2.0)
    assert cost(up(0, mbit=0, header_bytes=MBIT)).latency_s == pytest.approx(1.0)
    assert cost(up(0, mbit=0)).latency_s == 0.0


def test_a_message_without_modules_takes_nothing_from_the_others() -> None:
    def empty(transfer: Transfer) -> Transfer:
        return replace(transfer, modules=(), sizes=(), header_bytes=MBIT // 10)

    for send in (up, lambda d, **more: d2d(d, 1, **more)):
        alone, crowd = cost(send(0)), cost(send(0), send(2, mbit=1e-6))
        beside = cost(send(0), empty(send(2)))
        assert crowd.energy_j > 1.2 * alone.energy_j
        assert beside.energy_j == pytest.approx(1.1 * alone.energy_j)
        assert cost(empty(send(0))).energy_j == pytest.approx(0.1 * alone.energy_j)
    shared = cost(up(0), up(1), empty(up(2)))
    assert shared.energy_j == pytest.approx(cost(up(0), up(1)).energy_j * 1.05)


def test_cells_go_in_parallel() -> None:
    got = cost(up(0), up(3), on=block(snr={3: 3.0}))
    assert got.latency_s == pytest.approx(1.0)
    assert got.seconds_by_link["uplink"] == pytest.approx(1.5)


def test_fdma_splits_rate_and_noise() -> None:
    got = cost(up(0), up(1), up(2))
    assert got.latency_s == pytest.approx(3 / math.log2(1 + 3))
    assert cost(up(0), up(1), up(2), on=block(FIXED)).latency_s == pytest.approx(1.0)


def test_the_band_is_shared_for_the_phase() -> None:
    assert cost(up(0), up(1, step=1)).latency_s == pytest.approx(2 / math.log2(3))
    repair = row(Phase.REPAIR, "device/1", "edge/0")
    got = cost(up(0), repair)
    assert got.latency_s == pytest.approx(1.0)  # device 1 had not waited for anyone
    assert cost(
        up(0), row(Phase.ASK, "edge/0", "device/1", mbit=0), repair
    ).latency_s == pytest.approx(2.0)


def test_messages_of_one_device_follow_each_other() -> None:
    assert cost(up(0), up(0, mbit=2.0)).latency_s == pytest.approx(3.0)


def test_the_downlink_has_the_edges_power() -> None:
    down = row(Phase.DOWN, "edge/0", "device/0")
    assert cost(down).latency_s == pytest.approx(1 / math.log2(3))
    both = cost(down, row(Phase.DOWN, "edge/0", "device/1"))
    assert both.latency_s == pytest.approx(2 / math.log2(1 + 2 * 2))


def test_hops_of_a_chain_add_up() -> None:
    chain = [d2d(0, 1), d2d(1, 2, step=1), d2d(2, 5, step=2), up(5)]
    assert cost(*chain).latency_s == pytest.approx(4.0)
    assert cost(*reversed(chain)).latency_s == pytest.approx(4.0)


def test_summing_saves_what_forwarding_repeats() -> None:
    """Four in a row: 3 messages with summing, 1 + 2 + 3 without."""
    summed = [d2d(0, 1), d2d(1, 2, step=1), d2d(2, 5, step=2)]
    forwarded = [d2d(a, b, step=a) for a, b in ((0, 1), (1, 2), (2, 5)) for _ in range(a + 1)]
    one, many = cost(*summed), cost(*forwarded)
    assert many.latency_s == pytest.approx(2 * one.latency_s)
    assert many.energy_j == pytest.approx(2 * one.energy_j)


def test_a_receiver_takes_one_sender_at_a_time() -> None:
    both = [d2d(0, 1), d2d(2, 1, mbit=2.0)]
    assert cost(*both, on=block(FIXED)).latency_s == pytest.approx(3.0)
    assert cost(*both).latency_s == pytest.approx(3 * 2 / math.log2(3))


def test_clusters_of_a_step_share_no_band() -> None:
    assert cost(d2d(0, 1), d2d(3, 4)).latency_s == pytest.approx(1.0)


def test_d2d_has_a_band_of_its_own() -> None:
    radio = replace(RADIO, d2d_bandwidth_hz=2e6)
    got = cost(d2d(0, 1), on=block(radio))
    assert got.latency_s == pytest.approx(1 / (2 * math.log2(1.5)))
    assert cost(up(0), on=block(radio)).latency_s == pytest.approx(1.0)


def test_a_radio_sends_or_receives() -> None:
    swap = [d2d(0, 1), d2d(1, 0)]
    assert cost(*swap, on=block(FIXED)).latency_s == pytest.approx(2.0)
    ring = [d2d(0, 1), d2d(1, 2), d2d(2, 5)]
    assert cost(*ring, on=block(FIXED)).latency_s == pytest.approx(3.0)
    apart = [d2d(0, 1), d2d(2, 5)]
    assert cost(*apart, on=block(FIXED)).latency_s == pytest.approx(1.0)


def test_a_step_sends_what_was_there_when_it_began() -> None:
    own = row(Phase.UP, "edge/0", "cloud", mbit=0.5)  # of other bytes: not what device 0 sent
    assert cost(up(0), own).latency_s == pytest.approx(1.0)
    assert cost(up(0), replace(own, step=1)).latency_s == pytest.approx(1.6)


def test_radios_keep_the_order_given() -> None:
    rows, on = [d2d(1, 2), d2d(0, 1)], block(FIXED)
    assert cost(*rows, on=on, work={0: 50.0}).latency_s == pytest.approx(6.0)
    assert cost(*rows[::-1], on=on, work={0: 50.0}).latency_s == pytest.approx(7.0)


def test_the_wire_queues_and_delays() -> None:
    collect = [row(Phase.COLLECT, f"edge/{e}", "cloud") for e in (0, 1)]
    assert cost(*collect).latency_s == pytest.approx(1.1)
    assert cost(*collect, collect[0]).latency_s == pytest.approx(2.1)
    publish = row(Phase.PUBLISH, "cloud", "edge/1", mbit=3.0)
    got = cost(publish, *collect)
    assert got.latency_s == pytest.approx(4.2)
    assert got.seconds_by_link["backhaul"] == pytest.approx(1.1 + 1.1 + 3.1)
    assert got.energy_by_node_j == pytest.approx({"edge/0": 3.3, "edge/1": 3.3, "cloud": 9.3})


def flat_up(device: int, **more: Any) -> list[Transfer]:
    return [up(device, **more), row(Phase.UP, "edge/0", "cloud", **more)]


def test_flat_messages_go_on_when_they_arrive() -> None:
    """At 1 s, 2 s and 4 s at the edge; the wire takes 1 s, 1 s and 4 s."""
    on = block(FIXED, snr={1: math.sqrt(2) - 1})
    quick, slow, large = flat_up(0), flat_up(1), flat_up(2, mbit=4.0)
    assert cost(*quick, on=on).latency_s == pytest.approx(1 + 1.1)
    assert cost(*quick, *slow, on=on).latency_s == pytest.approx(2 + 1.1)
    assert cost(*slow, *quick, *large, on=on).latency_s == pytest.approx(4 + 4.1)
    sent = [*slow, *quick, *large]
    assert cost(*sent[::2], *sent[1::2], on=on) == cost(*sent, on=on)


def test_the_wire_is_free_for_the_first_to_arrive() -> None:
    on = block(FIXED, snr={1: math.sqrt(2) - 1})
    together = [*flat_up(1), *flat_up(0, mbit=1.5)]  # at 2 s and 1.5 s
    assert cost(*together, on=on).latency_s == pytest.approx(1.5 + 1.5 + 1.0 + 0.1)


def test_flat_messages_come_down_the_same_way() -> None:
    down = [
        row(Phase.DOWN, *ends)
        for d in (0, 1)
        for ends in (("cloud", "edge/0"), ("edge/0", f"device/{d}"))
    ]
    radio = replace(FIXED, edge_tx_power_w=FIXED.tx_power_w)
    got = cost(*down, on=block(radio))
    assert got.latency_s == pytest.approx(2 + 0.1 + 1)  # device 1's message left the wire second
    first_only = cost(*down, on=block(radio, snr={0: 1 / 8}))  # 5.9 s for device 0's
    assert first_only.latency_s == pytest.approx(1.1 + 1 / math.log2(9 / 8))


def test_tiers_wait_for_all_below() -> None:
    """Collecting is no handing on: it starts when the edge has heard of everyone."""
    on = block(FIXED, snr={1: math.sqrt(2) - 1})
    got = cost(up(0), up(1), row(Phase.COLLECT, "edge/0", "cloud"), on=on)
    assert got.latency_s == pytest.approx(2 + 1.1)


def test_training_comes_after_sharing() -> None:
    work = {0: 20.0, 3: 5.0}
    assert cost(work=work).latency_s == pytest.approx(2.0)
    assert cost(up(0), work=work).latency_s == pytest.approx(3.0)
    assert cost(d2d(0, 1), work=work).latency_s == pytest.approx(3.0)
    shared = d2d(1, 0, phase=Phase.SHARE)
    assert cost(shared, work=work).latency_s == pytest.approx(3.0)
    assert cost(shared, up(0), work=work).latency_s == pytest.approx(4.0)
    assert cost(d2d(0, 1, phase=Phase.SHARE), work=work).latency_s == pytest.approx(2.0)
    got = cost(work=work)
    assert got.seconds_by_link["compute"] == pytest.approx(2.5)
    cycles = {0: 200.0, 3: 50.0}  # at 100 Hz
    joules = {f"device/{d}": 1e-3 * 100.0**2 * c for d, c in cycles.items()}
    assert got.energy_by_node_j == pytest.approx(joules)
    assert got.energy_by_link_j["compute"] == pytest.approx(got.energy_j) == 2500.0


def test_who_pays() -> None:
    radio = replace(RADIO, edge_tx_power_w=2.0)
    got = cost(up(0), d2d(0, 1), row(Phase.DOWN, "edge/0", "device/0", mbit=2.0), on=block(radio))
    assert got.energy_by_link_j == pytest.approx(
        {"uplink": 2.0, "d2d": 2.5, "downlink": 2 * 2.5, "backhaul": 0.0, "compute": 0.0}
    )
    assert got.energy_by_node_j == pytest.approx(
        {"device/0": 2.0 + 2.0 + 2 * 0.5, "device/1": 0.5, "edge/0": 2 * 2.0}
    )
    assert got.energy_j == pytest.approx(9.5)
    assert got.latency_s == pytest.approx(2 + 1)  # the uplink and D2D have bands apart


def test_measuring_and_setting_up_are_free() -> None:
    free = [row(p, "edge/0", "device/0", t=0) for p in (Phase.SETUP, Phase.EVALUATE)]
    assert (cost(*free), cost(up(0), *free)) == (cost(), cost(up(0)))


def test_a_dead_link_takes_for_ever() -> None:
    dead = block(replace(RADIO, rx_power_w=0.0), snr={0: 0.0})
    assert cost(up(0), on=dead).latency_s == math.inf
    got = cost(row(Phase.DOWN, "edge/0", "device/0"), on=dead)
    assert (got.latency_s, got.energy_j) == (math.inf, math.inf)
    assert got.energy_by_node_j == {"edge/0": math.inf, "device/0": 0.0}
    assert cost(up(0, mbit=0), on=dead).latency_s == 0.0
    costs = dead.costs([0, 1])
    assert costs.uplink_s[0] == costs.uplink_j[0] == costs.downlink_j[0] == math.inf
    assert costs.uplink_s[1] == pytest.approx(1e-6)


def test_costs_of_a_bit() -> None:
    link_s, link_j, up_s, up_j, down_s, down_j = block(snr={1: 3.0}).costs([0, 1, 5])
    assert link_s == pytest.approx({(0, 1): 1e-6, (1, 0): 1e-6})  # 5 hears only 2
    assert link_j == pytest.approx(dict.fromkeys(link_s, 2.5e-6))
    assert up_s == pytest.approx({0: 1e-6, 1: 0.5e-6, 5: 1e-6})
    assert up_j == pytest.approx({0: 2e-6, 1: 1e-6, 5: 2e-6})
    assert down_s == pytest.approx({d: 1e-6 / math.log2(1 + 2 * s) for d, s in
                                    ((0, 1), (1, 3), (5, 1))})  # fmt: skip
    assert down_j == pytest.approx({d: 4.5 * s for d, s in down_s.items()})
    assert block().costs([]) == ({}, {}, {}, {}, {}, {})
    with pytest.raises(ConfigError, match=r"unknown device in \[0, 9\]; 0..5"):
        block().costs([9, 0])


def test_rates_by_address() -> None:
    on = block()
    assert on.rate_bit_s("device/0", "edge/0") == pytest.approx(1e6)
    assert on.rate_bit_s("device/0", "edge/0", sharers=3) == pytest.approx(2e6 / 3)
    assert on.rate_bit_s("device/0", "device/1", sharers=3) == pytest.approx(2e6 / 3)
    assert on.rate_bit_s("edge/1", "device/3") == pytest.approx(1e6 * math.log2(3))
    assert on.rate_bit_s("edge/1", "cloud", sharers=3) == 1e6
    assert on.hop("edge/1", "device/3") == Hop(LinkClass.DOWNLINK, 1, 3)
    with pytest.raises(ConfigError, match="0 senders share a band"):
        on.rate_bit_s("device/0", "edge/0", sharers=0)


@pytest.mark.parametrize(
    ("rows", "work", "message"),
    [
        ([row(Phase.UP, "device/9", "edge/0")], {}, r"unknown device/9; there are 0\.\.5"),
        ([row(Phase.COLLECT, "edge/2", "cloud")], {}, r"unknown edge/2; there are 0\.\.1"),
        ([row(Phase.UP, "device/3", "edge/0")], {}, "device/3 belongs to edge/1"),
        ([row(Phase.DOWN, "edge/1", "device/0")], {}, "device/0 belongs to edge/0"),
        ([d2d(0, 2)], {}, "device/0 -> device/2: the two have no D2D link"),
        ([replace(up(0), link=LinkClass.D2D)], {}, "device/0 -> edge/0 is no d2d but uplink"),
        ([replace(up(0), src="phone/0")], {}, "unknown address 'phone/0'"),
        ([up(0), up(1, t=2)], {}, r"transfers of the rounds \[1, 2\]"),
        ([], {6: 1.0}, r"work of unknown devices \[6\]; 0\.\.5"),
        ([], {0: -1.0}, "work = -1; it must be finite and >= 0"),
        ([], {0: math.nan}, "work = nan"),
    ],
)
def test_what_has_no_price(rows: list[Transfer], work: dict[int, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cost(*rows, work=work)
