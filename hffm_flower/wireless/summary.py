"""Costs of many runs in one row per method, with the claims that they bear out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hffm_flower.wireless.published import Cost
from hffm_flower.wireless.units import Array

Deciles = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Row:
    """A method over all runs, per edge round.

    Attributes:
        method: Its name.
        latency_s: Lowest decile, median and highest decile of the runs [s]. Deep fades make
            a long tail, of which a mean says little.
        energy_j: The same in energy [J].
        faster_than_star: Share of the runs in which its latency is below star's.
        cheaper_than_star: Share of the runs in which its energy is below star's.
        faster_than_twin: The same against the method without D2D; none where it has no D2D.
        cheaper_than_twin: The same in energy.
    """

    method: str
    latency_s: Deciles
    energy_j: Deciles
    faster_than_star: float | None
    cheaper_than_star: float | None
    faster_than_twin: float | None
    cheaper_than_twin: float | None


def summarise(runs: Sequence[Mapping[str, Cost]]) -> list[Row]:
    """One row per method of at least one run, in the runs' order of methods."""
    seconds = {m: np.array([r[m].latency_s for r in runs]) for m in runs[0]}
    joules = {m: np.array([r[m].energy_j for r in runs]) for m in runs[0]}
    rows = []
    for method in runs[0]:
        star = "star" if method != "star" else None
        twin = "_".join(part for part in method.split("_") if part != "d2d")
        other = twin if twin != method else None
        rows.append(Row(
            method,
            _spread(seconds[method]),
            _spread(joules[method]),
            _below(seconds, method, star),
            _below(joules, method, star),
            _below(seconds, method, other),
            _below(joules, method, other),
        ))  # fmt: skip
    return rows


def _spread(values: Array) -> Deciles:
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9]).tolist()
    return low, middle, high


def _below(
    values: Mapping[str, Array],
    method: str,
    other: str | None,
) -> float | None:
    return None if other is None else float((values[method] < values[other]).mean())
