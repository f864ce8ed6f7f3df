"""Placing experts: what the answer is where it is plain, and what refusals say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hffm_flower import assignment
from hffm_flower.assignment import Assignment, assign, memory_mib
from hffm_flower.errors import ConfigError

INF = math.inf
GOOD: dict[str, Any] = {
    "fit": np.ones((4, 2)),
    "sizes_mib": [1.0, 1.0],
    "device_mib": [1.0] * 4,
    "edges": [(0, 1), (2, 3)],
    "edge_mib": [2.0, 2.0],
    "copies": 1,
}


def test_unlimited_budgets_hold_all_even_what_fits_nobody() -> None:
    got = assign(np.zeros((5, 3)), [1, 2, 3], [INF] * 5, [(0, 3), (1, 2, 4)], [INF] * 2, 2)
    assert got == Assignment(((0, 1, 2),) * 5, ((0, 1, 2),) * 2)


def test_each_device_takes_what_fits_it_best() -> None:
    fit = [[9, 1, 0], [0, 9, 1], [1, 0, 9], [9, 8, 1]]
    got = assign(fit, [1.0] * 3, [1, 1, 1, 2], [(0, 2), (1, 3)], [INF] * 2, 1)
    assert got.held == ((0,), (1,), (2,), (0, 1))
    assert got.edges == ((0, 2), (0, 1))
    assert got.proven


def test_copies_come_before_fit() -> None:
    fit = [[9.0, 0.0], [9.0, 0.0], [8.0, 0.0]]
    assert assign(fit, [1, 1], [1] * 3, [(0, 1, 2)], [INF], 1).held == ((0,), (0,), (1,))


def test_an_edge_without_room_makes_its_devices_share() -> None:
    fit = [[9.0, 0.0], [0.0, 8.0], [1.0, 1.0]]
    got = assign(fit, [1, 1], [1] * 3, [(0, 1), (2,)], [1.0, 1.0], 1)
    assert got.held == ((0,), (0,), (1,))
    assert got.edges == ((0,), (1,))


def test_at_most_so_many_experts_per_device() -> None:
    fit = np.arange(12.0).reshape(3, 4)
    got = assign(fit, [1] * 4, [INF] * 3, [(0, 1, 2)], [INF], 1, most=2)
    assert [len(h) for h in got.held] == [2, 2, 2]
    assert {j for h in got.held for j in h} == {0, 1, 2, 3}


def test_a_budget_of_decimals_holds_what_it_names() -> None:
    held = assign(np.ones((2, 2)), [0.1, 0.2], [0.3, 0.1], [(0, 1)], [0.3], 1).held
    assert 0.1 + 0.2 > 0.3
    assert held == ((0, 1), (0,))


def test_forty_devices_are_settled_and_repeat() -> None:
    rng = np.random.default_rng(4)
    fit, device_mib = rng.random((40, 8)), rng.uniform(1.3, 6, 40)
    edges = [tuple(range(4 * e, 4 * e + 4)) for e in range(10)]
    one, two = (assign(fit, [1.2] * 8, device_mib, edges, [5.0] * 10, 4) for _ in range(2))
    assert one == two
    assert one.proven
    for held, budget in zip(one.held, device_mib, strict=True):
        assert 1 <= len(held) <= budget / 1.2
    assert all(len(held) <= 4 for held in one.edges)
    assert all(sum(j in held for held in one.held) >= 4 for j in range(8))


def test_scaling_the_fit_changes_nothing() -> None:
    fit = np.random.default_rng(2).random((6, 3))
    args: Any = ([1.0, 2.0, 1.5], [2.5] * 6, [(0, 1, 2), (3, 4, 5)], [3.0, 4.0], 2)
    assert assign(fit, *args) == assign(fit * 1e6, *args) == assign(fit * 1e-9, *args)


def test_the_example_of_the_shortfall() -> None:
    with pytest.raises(ConfigError) as caught:
        assign(np.ones((4, 4)), [1.2] * 4, [1.25] * 4, [(0, 1, 2, 3)], [INF], 2)
    assert caught.value.key == "tree.memory-mib"
    assert str(caught.value) == (
        "4 experts of 1.2 MiB on at least 2 devices each need 9.6 MiB (8 copies); the devices' "
        "budgets hold 5 MiB (4 copies): 4.6 MiB short (device 0 1.15 MiB, device 1 1.15 MiB, "
        "device 2 1.15 MiB, device 3 1.15 MiB)"
    )


def test_a_shortfall_of_edges_and_devices_too_small() -> None:
    with pytest.raises(ConfigError) as caught:
        assign(np.ones((3, 2)), [1.0, 2.0], [INF, INF, 0.5], [(0, 1), (2,)], [2.25, 9.0], 1)
    text = str(caught.value)
    assert "2 experts of 1 to 2 MiB on at least 1 devices each need 3 MiB (2 copies)" in text
    assert "hold any amount (4 copies): 0.5 MiB short (device 2 0.5 MiB)" in text
    assert text.endswith("; too small for any expert: devices 2")
    with pytest.raises(ConfigError, match=r": 0\.75 MiB short \(edge 0 0\.75 MiB\)$"):
        assign(np.ones((2, 2)), [1.0, 2.0], [INF, INF], [(0, 1)], [2.25], 1)


def test_a_long_shortfall_lists_the_first() -> None:
    with pytest.raises(ConfigError, match=r"device 5 1 MiB, 3 more\)"):
        assign(np.ones((9, 1)), [1.0], [0.0] * 9, [tuple(range(9))], [INF], 9)


@pytest.mark.parametrize(
    ("changes", "message", "key"),
    [
        ({"fit": np.ones(4)}, "fit: 1 dimensions, needed: 2", ""),
        ({"fit": -np.ones((4, 2))}, "fit: every number must be >= 0", ""),
        ({"fit": np.full((4, 2), np.nan)}, "fit: every number must be >= 0, and none NaN", ""),
        ({"fit": np.full((4, 2), INF)}, r"shape \[4, 2\].*finite", ""),
        ({"fit": np.ones((0, 2))}, r"shape \[0, 2\].*both >= 1", ""),
        ({"fit": [["a", "b"]] * 4}, "fit: not numbers", ""),
        ({"sizes_mib": [1.0]}, "sizes of experts: 1 numbers, needed: 2", ""),
        ({"sizes_mib": [1.0, 0.0]}, "sizes of experts: every one must be above 0", ""),
        ({"sizes_mib": [1.0, INF]}, "above 0 and finite", ""),
        ({"device_mib": [1.0] * 3}, "devices' memory: 3 numbers, needed: 4", "tree.memory-mib"),
        ({"device_mib": [1, 1, 1, -1]}, "devices' memory: every number", "tree.memory-mib"),
        ({"edge_mib": [1.0]}, "edges' memory: 1 numbers, needed: 2", "tree.edge-memory-mib"),
        ({"edge_mib": [1.0, np.nan]}, "edges' memory: .* none NaN", "tree.edge-memory-mib"),
        ({"edges": [(0, 1), (2,)]}, r"missing \[3\]", ""),
        ({"edges": [(0, 1), (1, 2, 3)]}, r"repeated \[1\]", ""),
        ({"copies": 5}, r"5 copies of each expert; allowed: 1\.\.4", ""),
        ({"copies": 0}, r"0 copies of each expert; allowed: 1\.\.4", ""),
        ({"most": -1}, "at most -1 experts", ""),
        (
            {"most": 1, "copies": 3},
            "make room for 4; .* need 6: at most 2 or more",
            "model.experts-held",
        ),
        ({"time_limit_s": 0.0}, "time limit 0.0 s; it must be above 0", ""),
    ],
)
def test_input_that_cannot_be_used(changes: dict[str, Any], message: str, key: str) -> None:
    assert len(assign(**GOOD).held) == 4
    with pytest.raises(ConfigError, match=message) as caught:
        assign(**GOOD | changes)
    assert caught.value.key == key


def test_the_time_limit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy import optimize

    plain = optimize.milp

    def late(*args: Any, found: bool, **options: Any) -> Any:
        solved = plain(*args, **options)
        solved.status, solved.message = 1, "Time limit reached."
        solved.x = solved.x if found else None
        return solved

    monkeypatch.setattr(optimize, "milp", lambda *a, **o: late(*a, found=True, **o))
    got = assign(**GOOD)
    assert not got.proven
    assert all(len(held) == 1 for held in got.held)
    monkeypatch.setattr(optimize, "milp", lambda *a, **o: late(*a, found=False, **o))
    with pytest.raises(ConfigError, match=r"no assignment of experts after 3 s: Time limit"):
        assign(**GOOD, time_limit_s=3.0)


def test_memory_is_16_bytes_per_parameter() -> None:
    assert memory_mib(2**16) == 1.0
    assert memory_mib(0) == 0.0
    assert 4 * np.dtype(np.float32).itemsize == assignment.BYTES_PER_PARAMETER
