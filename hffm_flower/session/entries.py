"""The methods of a comparison, by name: what is compared, and with which settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from hffm_flower.config import RunConfig
from hffm_flower.d2d import PLANS
from hffm_flower.errors import ConfigError, one_of
from hffm_flower.schedule import METHODS

DEFAULT: Final = (
    "local", "star", "edge-only", "edge-only+d2d", "h-fedfm-e2", "h-fedfm-e2+d2d",
    "h-fedfm-e8", "h-fedfm-e8+d2d", "central",
)  # fmt: skip
PLAIN_D2D: Final = "relay"
"""Plan of ``+d2d``."""
FORM: Final = (
    "a method (" + ", ".join(METHODS) + "), for h-fedfm with its period (h-fedfm-e2), "
    "perhaps with +d2d or +" + ", +".join(PLANS)
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One run of a comparison."""

    name: str
    config: RunConfig


def entries(base: RunConfig, names: Sequence[str], seeds: Iterable[int]) -> list[Entry]:
    """Runs of ``names``, in their order, for each of ``seeds``.

    Raises:
        ConfigError: A name is unknown or repeated, or T is no multiple of a period.
    """
    if not names:
        raise ConfigError(f"no method to compare; each is {FORM}")
    if repeated := {n for n in names if list(names).count(n) > 1}:
        raise ConfigError(f"methods {', '.join(sorted(repeated))} are named twice")
    wanted = [
        Entry(name, _configured(base.with_values(seed=seed), name))
        for seed in seeds
        for name in names
    ]
    known: dict[RunConfig, str] = {}
    for entry in wanted:
        other = known.setdefault(entry.config, entry.name)
        if other != entry.name:
            raise ConfigError(f"{other!r} and {entry.name!r} are the same method")
    return wanted


def _configured(base: RunConfig, name: str) -> RunConfig:
    stem, plus, plan = name.partition("+")
    method, period = stem, 1
    if match := re.fullmatch(r"(h-fedfm)-e([1-9][0-9]{0,5})", stem):
        method, period = match[1], int(match[2])
    elif stem == "h-fedfm":
        raise ConfigError(f"method {name!r} does not say its period; e.g. h-fedfm-e2")
    if method not in METHODS:
        raise ConfigError(f"method {name!r} is unknown; allowed is {FORM}")
    if base.rounds % period:
        raise ConfigError(
            f"{base.rounds} edge rounds are no multiple of the period {period} of {name!r}: its "
            "last cycle would be shorter than the others",
            key="rounds",
        )
    kind = "none"
    if plus:
        kind = PLAIN_D2D if plan == "d2d" else one_of(f"D2D plan of {name!r}", plan, PLANS)
    return base.with_values(method=method, tree__period=period, d2d__plan=kind)
