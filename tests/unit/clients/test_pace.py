from __future__ import annotations

import pytest

from clients.pace import Pace


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_steps_share_the_second_half_and_end_with_the_call(steps: int) -> None:
    pace = Pace(100.0, 60.0, steps)
    limits = [pace.limit(s) for s in range(steps)]
    doors = [pace.door(s) for s in range(steps)]
    assert limits[-1] == pytest.approx(160.0)
    assert limits[0] == pytest.approx(130.0 + 30.0 / steps)
    assert all(a < b for a, b in zip(doors, limits, strict=True))
    assert all(limit <= door for limit, door in zip(limits, doors[1:], strict=False))
