from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hffm_flower.errors import ConfigError
from hffm_flower.wireless.energy import (
    Activity,
    Compute,
    EnergyModel,
    Receive,
    Transmit,
    compute_s,
)

BUSY = Activity(sent_s=2.0, received_s=3.0, cycles=1e9)
OWN = {"transmit": "sent_s", "receive": "received_s", "compute": "cycles"}


def test_by_hand() -> None:
    assert Transmit(0.2).energy_j(BUSY) == pytest.approx(0.4)
    assert Transmit(0.2, efficiency=0.25).energy_j(BUSY) == pytest.approx(1.6)
    assert Receive(0.1).energy_j(BUSY) == pytest.approx(0.3)
    assert Compute(1e9, 1e-28).energy_j(BUSY) == pytest.approx(0.1)
    assert compute_s(2e10, 1e10) == 2.0


MODELS: dict[str, EnergyModel] = {
    "transmit": Transmit(), "receive": Receive(), "compute": Compute(),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_counts_its_own_part_alone(name: str) -> None:
    model = MODELS[name]
    assert model.energy_j(Activity()) == 0
    for part in OWN.values():
        once = float(model.energy_j(Activity(**{part: 1e6})))
        assert (once > 0) == (part == OWN[name])
        assert model.energy_j(Activity(**{part: 2e6})) == pytest.approx(2 * once)
    many = model.energy_j(Activity(np.ones(3), np.ones(3), np.ones(3)))
    assert many.shape == (3,)


@given(st.floats(1.05, 100))
def test_energy_rises_with_power_and_clock(more: float) -> None:
    assert Transmit(0.2 * more).energy_j(BUSY) > Transmit(0.2).energy_j(BUSY)
    assert Receive(0.1 * more).energy_j(BUSY) > Receive(0.1).energy_j(BUSY)
    assert Compute(1e9 * more).energy_j(BUSY) > Compute(1e9).energy_j(BUSY)
    assert compute_s(2e10 * more, 1e10) > compute_s(2e10, 1e10) > compute_s(2e10, 1e10 * more)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_dimensions(second: float, watt: float) -> None:
    """In other units of time and power, an energy changes as their product."""
    joule = second * watt
    there = Activity(sent_s=2 * second, received_s=3 * second, cycles=1e9)
    assert Transmit(0.2 * watt).energy_j(there) == pytest.approx(0.4 * joule)
    assert Receive(0.1 * watt).energy_j(there) == pytest.approx(0.3 * joule)
    chip = Compute(cpu_hz=1e9 / second, kappa=1e-28 * joule * second**2)
    assert chip.energy_j(there) == pytest.approx(0.1 * joule)
    assert compute_s(2e10, 1e10 / second) == pytest.approx(2 * second)


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="tx_power_w = -1"):
        Transmit(-1.0)
    for efficiency in (0.0, 1.5):
        with pytest.raises(ConfigError, match="efficiency"):
            Transmit(1.0, efficiency)
    with pytest.raises(ConfigError, match="rx_power_w = -1"):
        Receive(-1.0)
    with pytest.raises(ConfigError, match="cpu_hz = 0"):
        Compute(0.0)
    with pytest.raises(ConfigError, match="sent_s = -1"):
        Activity(sent_s=-1.0)
    with pytest.raises(ConfigError, match="flops_per_s = 0"):
        compute_s(1.0, 0.0)
