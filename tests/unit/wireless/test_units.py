from __future__ import annotations

import numpy as np
import pytest

from hffm_flower.errors import ConfigError
from hffm_flower.wireless.units import (
    db_of_ratio,
    not_negative,
    positive,
    ratio_of_db,
    w_of_dbm,
)


def test_decibels() -> None:
    assert ratio_of_db([0.0, 10, -30]) == pytest.approx([1, 10, 1e-3])
    assert db_of_ratio([1.0, 10, 1e-3]) == pytest.approx([0, 10, -30])
    assert w_of_dbm([0.0, 30, 23]) == pytest.approx([1e-3, 1, 0.1995262])


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, [1.0, -1.0]])
def test_what_is_no_quantity(bad: object) -> None:
    for check in (positive, not_negative):
        with pytest.raises(ConfigError, match="power_w = "):
            check("power_w", bad)  # type: ignore[arg-type]


def test_zero() -> None:
    assert not_negative("delay_s", 0.0) == 0
    with pytest.raises(ConfigError, match="bandwidth_hz = 0; it must be finite and above 0"):
        positive("bandwidth_hz", [1.0, 0.0])
    with pytest.raises(ConfigError, match="ratio = 0"):
        db_of_ratio(0.0)
