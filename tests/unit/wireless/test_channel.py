from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hffm_flower.errors import ConfigError
from hffm_flower.wireless.channel import (
    CHANNELS,
    ChannelModel,
    LogDistance,
    Rayleigh,
    Rician,
    channel_of,
)
from hffm_flower.wireless.rate import noise_w_hz, rate_bit_s
from hffm_flower.wireless.tr38901 import Uma, Umi

MANY = 200_000


@pytest.mark.parametrize("name", CHANNELS)
@given(st.floats(10.0, 5e3), st.floats(1.01, 10.0))
def test_the_rate_falls_with_distance(name: str, distance_m: float, factor: float) -> None:
    gain = CHANNELS[name]().path_gain([distance_m, distance_m * factor])
    near, far = rate_bit_s(gain, tx_power_w=0.2, bandwidth_hz=1e6, noise_w_hz=noise_w_hz())
    assert near > far > 0


@pytest.mark.parametrize("name", CHANNELS)
def test_a_gain_is_a_ratio_below_one(name: str) -> None:
    model = CHANNELS[name]()
    assert (model.path_gain([0.0, 0.5, 1, 10, 1e4]) < 1).all()
    assert (model.path_gain([0.0, 0.5, 1, 10, 1e4]) > 0).all()


@pytest.mark.parametrize("name", CHANNELS)
def test_draws_are_the_generators_and_keep_the_shape(name: str) -> None:
    model, distance_m = CHANNELS[name](), np.full((3, 4), 200.0)
    one, again, other = (model.draw(distance_m, np.random.default_rng(s)) for s in (1, 1, 2))
    assert one.shape == (3, 4)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert len(set(one.ravel().tolist())) == 12
    assert model.draw(np.empty(0), np.random.default_rng(1)).shape == (0,)


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_distances_that_are_none(name: str, bad: float) -> None:
    with pytest.raises(ConfigError, match="distance_m"):
        CHANNELS[name]().path_gain([1.0, bad])
    with pytest.raises(ConfigError, match="distance_m"):
        CHANNELS[name]().draw([1.0, bad], np.random.default_rng(1))


@pytest.mark.parametrize(
    "model", [Rayleigh(), Rician(), Rician(factor_db=-30), Rician(factor_db=20)]
)
def test_fading_has_mean_power_one(model: Rayleigh | Rician) -> None:
    distance_m = np.full(MANY, 100.0)
    drawn = model.draw(distance_m, np.random.default_rng(1)) / model.path_gain(distance_m)
    assert drawn.mean() == pytest.approx(1, abs=0.01)


def test_spread_of_fading_and_shadowing() -> None:
    at = np.full(MANY, 50.0)
    power = Rayleigh().draw(at, np.random.default_rng(1)) / Rayleigh().path_gain(at)
    assert power.var() == pytest.approx(1, abs=0.03)
    k = 10**0.6
    power = Rician(factor_db=6.0).draw(at, np.random.default_rng(1)) / Rician().path_gain(at)
    assert power.var() == pytest.approx((1 + 2 * k) / (1 + k) ** 2, rel=0.03)
    level = 10 * np.log10(
        LogDistance().draw(at, np.random.default_rng(1)) / LogDistance().path_gain(at)
    )
    assert (level.mean(), level.std()) == pytest.approx((0, 8), abs=0.05)


def test_log_distance_by_hand() -> None:
    assert LogDistance().path_gain([0.2, 1.0, 10.0, 100.0]) == pytest.approx(
        [1e-3, 1e-3, 1e-6, 1e-9]
    )


@pytest.mark.parametrize(
    "bad", [{"exponent": 0.0}, {"exponent": -2.0}, {"shadowing_db": -1.0}, {"reference_m": 0.0}]
)
def test_constants_that_cannot_be(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        LogDistance(**bad)


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("rayleigh", Rayleigh()),
        ("log-distance exponent=3.5 shadowing-db=4", LogDistance(exponent=3.5, shadowing_db=4.0)),
        ("rician factor-db=-3 reference-gain-db=-40", Rician(-40.0, factor_db=-3.0)),
        ("umi carrier-hz=28e9 device-height-m=22.5", Umi(28e9, device_height_m=22.5)),
    ],
)
def test_constants_stand_behind_the_name(text: str, model: ChannelModel) -> None:
    assert channel_of(text) == model


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "unknown channel ''; allowed: rayleigh"),
        ("umi exponent=3", "unknown constant of channel 'umi' 'exponent'; allowed: carrier_hz"),
        ("rayleigh exponent", "'exponent' is no number"),
        ("rayleigh exponent=steep", "'exponent=steep' is no number"),
        ("rician factor-db=inf", "'factor-db=inf' is no number"),
        ("rayleigh exponent=-1", "exponent = -1"),
        ("rayleigh exponent=3 exponent=4", "'exponent' is given twice"),
        ("rician factor-db=1e9", "'factor-db=1e9'; allowed: up to 300 dB"),
        ("rayleigh reference-gain-db=10", "its gain at 1 m is 10; allowed: above 0, up to 1"),
        ("uma device-height-m=13.5", "device_height_m = 13.5; allowed: above 1, up to 13"),
        ("umi device-height-m=23", "device_height_m = 23; allowed: above 1, up to 22.5"),
    ],
)
def test_channels_that_cannot_be(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        channel_of(text)


def test_tr38901_by_hand() -> None:
    """100 m and 1 km, 3.5 GHz: the tables' rows worked out apart from the code."""
    assert Uma().loss_db(100.0, sight=True) == pytest.approx(83.14, abs=0.005)
    assert Uma().loss_db(1000.0, sight=True) == pytest.approx(109.41, abs=0.005)
    assert Uma().loss_db(1000.0, sight=False) == pytest.approx(141.67, abs=0.005)
    assert Umi().loss_db(100.0, sight=True) == pytest.approx(85.31, abs=0.005)
    assert Umi().loss_db(1000.0, sight=True) == pytest.approx(119.15, abs=0.005)
    assert Umi().loss_db(100.0, sight=False) == pytest.approx(104.64, abs=0.005)
    assert Uma().sight_probability([10.0, 18.0, 63.0]) == pytest.approx([1, 1, 0.54848], abs=1e-5)
    assert Umi().sight_probability(36.0) == pytest.approx(0.5 + 0.5 / np.e)


@pytest.mark.parametrize("cell", [Uma(), Umi(), Uma(carrier_hz=28e9), Umi(device_height_m=10.0)])
def test_tr38901_has_no_step_at_the_break_point(cell: Uma | Umi) -> None:
    effective = (cell.base_height_m - 1) * (cell.device_height_m - 1)
    break_m = 4 * effective * cell.carrier_hz / 299_792_458
    before, after = cell.loss_db([break_m * (1 - 1e-9), break_m * (1 + 1e-9)], sight=True)
    assert before == pytest.approx(float(after), abs=1e-6)


@pytest.mark.parametrize("cell", [Uma(), Umi()])
def test_tr38901_draws_follow_the_sight(cell: Uma | Umi) -> None:
    at = np.full(MANY, 60.0)
    level = 10 * np.log10(cell.draw(at, np.random.default_rng(1)))
    p = float(cell.sight_probability(60.0))
    los, nlos = (-float(cell.loss_db(60.0, sight=s)) for s in (True, False))
    assert level.mean() == pytest.approx(p * los + (1 - p) * nlos, abs=0.1)
    s_los, s_nlos = (4.0, 6.0) if isinstance(cell, Uma) else (4.0, 7.82)
    spread = p * s_los**2 + (1 - p) * s_nlos**2 + p * (1 - p) * (los - nlos) ** 2
    assert level.var() == pytest.approx(spread, rel=0.02)


@pytest.mark.parametrize(
    "bad", [{"carrier_hz": 0.0}, {"base_height_m": 1.0}, {"device_height_m": 13.1}]
)
def test_cells_outside_the_tables(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Uma(**bad)
