"""Rates and times: by hand, by their directions, and by their dimensions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hffm_flower.errors import ConfigError
from hffm_flower.wireless.rate import (
    SHARING,
    Backhaul,
    latency_s,
    noise_w_hz,
    rate_bit_s,
)

ratios = st.floats(1.05, 100.0)


def rate(*, gain: float = 1e-9, power: float = 0.2, band: float = 1e6, noise: float = 4e-21) -> float:  # fmt: skip  # noqa: E501
    return float(rate_bit_s(gain, tx_power_w=power, bandwidth_hz=band, noise_w_hz=noise))


def test_by_hand() -> None:
    assert rate(gain=3e-9, power=1.0, noise=1e-15) == pytest.approx(2e6)
    assert noise_w_hz() == pytest.approx(3.981e-21, rel=1e-3)
    assert noise_w_hz(10.0) == pytest.approx(10 * noise_w_hz())
    assert latency_s(6e6, 2e6) == 3.0
    assert latency_s([0.0, 1.0], [0.0, 0.0]).tolist() == [0.0, math.inf]
    assert Backhaul().latency_s(48e6) == pytest.approx(12.1)
    assert SHARING["fdma"](8e6, [1, 4]).tolist() == [8e6, 2e6]
    assert SHARING["fixed"](8e6, [1, 4]).tolist() == [8e6, 8e6]


@given(ratios)
def test_the_rate_moves_in_the_right_direction(more: float) -> None:
    one = rate()
    assert rate(gain=1e-9 * more) > one
    assert rate(power=0.2 * more) > one
    assert rate(band=1e6 * more) > one
    assert rate(noise=4e-21 * more) < one
    assert rate(band=1e6 * more) < more * one  # a wider band lets in more noise


@given(ratios)
def test_times_move_in_the_right_direction(more: float) -> None:
    assert latency_s(1e6 * more, 1e6) > latency_s(1e6, 1e6) > latency_s(1e6, 1e6 * more)
    assert Backhaul().latency_s(1e6 * more) > Backhaul().latency_s(1e6)
    assert Backhaul(delay_s=0.1 * more).latency_s(1e6) > Backhaul().latency_s(1e6)


@given(st.integers(2, 64))
def test_sharing_costs_each_but_less_than_its_share(sharers: int) -> None:
    part = float(SHARING["fdma"](1e6, sharers))
    assert rate() / sharers < rate(band=part) < rate()


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_dimensions(second: float, watt: float) -> None:
    """In other units of time and power, every result changes by its own dimension alone."""
    hertz, joule = 1 / second, watt * second
    there = rate(power=0.2 * watt, band=1e6 * hertz, noise=4e-21 * joule)
    assert there == pytest.approx(rate() * hertz)
    assert latency_s(5e6, 1e6 * hertz) == pytest.approx(5 * second)
    wire = Backhaul(rate_bit_s=4e6 * hertz, delay_s=0.1 * second)
    assert wire.latency_s(4e6) == pytest.approx(1.1 * second)
    for share in SHARING.values():
        assert share(1e6 * hertz, 3) == pytest.approx(share(1e6, 3) * hertz)


def test_it_is_a_formula_for_every_link() -> None:
    gain = np.array([[1e-9, 2e-9], [0.0, 4e-9]])
    got = rate_bit_s(gain, tx_power_w=0.2, bandwidth_hz=[1e6, 2e6], noise_w_hz=4e-21)
    want = [[rate(gain=g, band=b) for g, b in zip(row, (1e6, 2e6), strict=True)] for row in gain]
    assert got == pytest.approx(np.array(want))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"power": -0.2}, "tx_power_w = -0.2; it must be finite and above 0"),
        ({"power": 0.0}, "tx_power_w = 0"),
        ({"band": 0.0}, "bandwidth_hz = 0"),
        ({"noise": -1.0}, "noise_w_hz = -1"),
        ({"gain": -1.0}, "gain = -1"),
        ({"gain": math.nan}, "gain = nan"),
    ],
)
def test_links_that_cannot_be(words: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rate(**words)


def test_more_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="noise_figure_db = -1"):
        noise_w_hz(-1.0)
    with pytest.raises(ConfigError, match="bits = -1"):
        latency_s(-1.0, 1e6)
    with pytest.raises(ConfigError, match="rate_bit_s = -5"):
        latency_s(1.0, [1.0, -5.0])
    with pytest.raises(ConfigError, match="0 senders"):
        SHARING["fdma"](1e6, [1, 0])
    with pytest.raises(ConfigError, match="rate_bit_s = 0"):
        Backhaul(rate_bit_s=0.0)
    with pytest.raises(ConfigError, match="delay_s = -1"):
        Backhaul(delay_s=-1.0)
    with pytest.raises(ConfigError, match="noise_bandwidth_hz = 0"):
        rate_bit_s(1.0, tx_power_w=1, bandwidth_hz=1, noise_w_hz=1, noise_bandwidth_hz=0)


def test_a_signal_far_below_the_noise_still_carries_something() -> None:
    one = {"tx_power_w": 1.0, "bandwidth_hz": 1.0, "noise_w_hz": 1.0}
    for snr in (1e-12, 1e-16, 1e-30):
        assert float(rate_bit_s(snr, **one)) == pytest.approx(snr / math.log(2), rel=1e-9)
    wider = [float(rate_bit_s(1e-24, tx_power_w=0.2, bandwidth_hz=b, noise_w_hz=4e-21))
             for b in (1e3, 1e9, 1e12)]  # fmt: skip
    assert wider == sorted(wider)
