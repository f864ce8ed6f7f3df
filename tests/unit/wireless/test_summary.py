from __future__ import annotations

import pytest

from hffm_flower.wireless.published import Cost
from hffm_flower.wireless.summary import summarise


def test_shares_and_deciles() -> None:
    runs = [
        {"star": Cost(2.0, 9.0), "hffm_2": Cost(float(s), 8.0), "hffm_d2d_2": Cost(1.5, float(s))}
        for s in range(1, 12)
    ]
    star, plain, relayed = summarise(runs)
    assert (star.method, plain.method, relayed.method) == ("star", "hffm_2", "hffm_d2d_2")
    assert star.faster_than_star is star.cheaper_than_star is star.faster_than_twin is None
    assert plain.latency_s == pytest.approx((2, 6, 10))
    assert plain.energy_j == pytest.approx((8, 8, 8))
    assert plain.faster_than_star == pytest.approx(1 / 11)
    assert plain.cheaper_than_star == 1
    assert plain.cheaper_than_twin is None
    assert relayed.faster_than_twin == pytest.approx(10 / 11)
    assert relayed.cheaper_than_twin == pytest.approx(7 / 11)
