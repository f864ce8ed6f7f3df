"""Against trying everything: the best assignment, or the least memory that is missing."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hffm_flower.assignment import Assignment, assign
from hffm_flower.errors import ConfigError

BYTE = 2.0**-20
BUDGETS = st.one_of(st.just(math.inf), st.sampled_from([0.0, 0.3, 0.6, 1.0, 1.1, 1.5, 2.0, 3.1]))
QUICK = settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@dataclass(frozen=True)
class Case:
    fit: tuple[tuple[float, ...], ...]
    sizes: tuple[float, ...]
    device_mib: tuple[float, ...]
    edges: tuple[tuple[int, ...], ...]
    edge_mib: tuple[float, ...]
    copies: int
    most: int

    def solve(self) -> Assignment:
        return assign(
            self.fit, self.sizes, self.device_mib, self.edges, self.edge_mib, self.copies, self.most
        )

    def every(self) -> Iterator[tuple[float, float]]:
        """Fit and missing memory of every table with copies enough and not too many each."""
        sizes, fit = np.array(self.sizes), np.array(self.fit)
        for x in tables(*fit.shape):
            if (x.sum(0) < self.copies).any() or (self.most and x.sum(1).max() > self.most):
                continue
            y = np.array([x[list(members)].any(0) for members in self.edges])
            pairs = ((x, self.device_mib), (y, self.edge_mib))
            lacks = [np.maximum(0.0, held @ sizes - np.array(mib)) for held, mib in pairs]
            yield float((fit * x).sum()), sum(float(a[a > BYTE].sum()) for a in lacks)


@cache
def tables(devices: int, experts: int) -> tuple[NDArray[np.bool_], ...]:
    cells = itertools.product((False, True), repeat=devices * experts)
    return tuple(np.array(c).reshape(devices, experts) for c in cells)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    devices, experts = draw(st.sampled_from([(1, 3), (2, 2), (3, 2), (2, 3), (3, 3), (4, 2)]))
    fits = st.one_of(st.integers(0, 3).map(float), st.floats(0, 1, width=16))
    first = draw(st.integers(1, devices))
    edges = (tuple(range(first)), tuple(range(first, devices)))
    return Case(
        tuple(tuple(draw(fits) for _ in range(experts)) for _ in range(devices)),
        tuple(draw(st.sampled_from([0.3, 0.5, 1.0, 1.2])) for _ in range(experts)),
        tuple(draw(BUDGETS) for _ in range(devices)),
        edges,
        tuple(draw(BUDGETS) for _ in edges),
        draw(st.integers(1, devices)),
        draw(st.sampled_from([0, 0, experts, max(1, experts - 1)])),
    )


@QUICK
@given(cases())
def test_the_best_or_the_least_shortfall_of_all(case: Case) -> None:
    every = list(case.every())
    possible = [fit for fit, missing in every if missing == 0.0]
    if not every:
        event("too many copies for the limit per device")
        with pytest.raises(ConfigError, match="make room for"):
            case.solve()
    elif possible:
        event("possible")
        got = case.solve()
        worth = sum(case.fit[k][j] for k, held in enumerate(got.held) for j in held)
        steps = 2e-6 * np.size(case.fit) * float(np.max(case.fit))
        assert worth == pytest.approx(max(possible), abs=steps + 1e-12)
    else:
        event("impossible")
        with pytest.raises(ConfigError) as caught:
            case.solve()
        told = re.search(r": ([\d.e-]+) MiB short \((.*?)\)", str(caught.value))
        assert told is not None
        assert float(told[1]) == pytest.approx(min(m for _, m in every), rel=1e-4)
        parts = [float(p.split()[2]) for p in told[2].split(", ")]
        of_edges = all(part.startswith("edge") for part in told[2].split(", "))
        assert caught.value.key == ("tree.edge-memory-mib" if of_edges else "tree.memory-mib")
        assert sum(parts) == pytest.approx(float(told[1]), rel=1e-4)


@QUICK
@given(cases())
def test_every_promise_is_kept_and_repeats(case: Case) -> None:
    try:
        got = case.solve()
    except ConfigError:
        return
    assert got == case.solve()
    assert got.proven
    sizes = dict(enumerate(case.sizes))
    for held, budget in zip(got.held, case.device_mib, strict=True):
        assert sum(sizes[j] for j in held) <= budget + 2 * BYTE
        assert list(held) == sorted(set(held))
        assert not case.most or len(held) <= case.most
    for members, held, budget in zip(case.edges, got.edges, case.edge_mib, strict=True):
        assert sum(sizes[j] for j in held) <= budget + 2 * BYTE
        assert set(held) == {j for k in members for j in got.held[k]}
    for j in sizes:
        assert sum(j in held for held in got.held) >= case.copies
    for members, edge_held, room in zip(case.edges, got.edges, case.edge_mib, strict=True):
        left = room - sum(sizes[j] for j in edge_held)
        for k in members:
            if not got.held[k]:  # nothing fits into it that its edge holds or has room for
                reach = [j for j in sizes if j in edge_held or sizes[j] <= left]
                assert all(sizes[j] > case.device_mib[k] for j in reach)
