"""The methods of a comparison, by name: what is compared, and with which settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
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
    """One run of a comparison.

    Attributes:
        name: Name of its row.
        config: Its settings.
        variant: Those that make the variant; None where methods are compared.
    """

    name: str
    config: RunConfig
    variant: Mapping[str, object] | None = None

    def named(self, error: ConfigError) -> ConfigError:
        """The same error with the variant in front, where there is one."""
        return error if self.variant is None else in_variant(self.name, error)


def in_variant(name: str, error: ConfigError) -> ConfigError:
    """The same error with variant ``name`` in front."""
    return ConfigError(f"variants.{name}: {error}", key=f"variants.{name}")


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
    refuse_twins(wanted, "method")
    return wanted


def refuse_twins(wanted: Sequence[Entry], what: str) -> None:
    """Refuse two names for the same settings.

    Raises:
        ConfigError: There are such.
    """
    known: dict[RunConfig, str] = {}
    for entry in wanted:
        other = known.setdefault(entry.config, entry.name)
        if other != entry.name:
            raise ConfigError(f"{other!r} and {entry.name!r} are the same {what}")


def _configured(base: RunConfig, name: str) -> RunConfig:
    stem, plus, plan = name.partition("+")
    method, period = stem, 1
    if match := re.fullmatch(r"(h-fedfm)-e([1-9][0-9]{0,5})", stem):
        method, period = match[1], int(match[2])
    elif stem == "h-fedfm":
        raise ConfigError(f"method {name!r} does not say its period; e.g. h-fedfm-e2")
    if method not in METHODS:
        raise ConfigError(f"method {name!r} is unknown; allowed is {FORM}")
    check_rounds(base.rounds, period, name)
    kind = "none"
    if plus:
        kind = PLAIN_D2D if plan == "d2d" else one_of(f"D2D plan of {name!r}", plan, PLANS)
    return base.with_values(method=method, tree__period=period, d2d__plan=kind)


def check_rounds(rounds: int, period: int, name: str) -> None:
    """Refuse an edge round count T that ends inside a cloud cycle.

    Raises:
        ConfigError: It does.
    """
    if rounds % period:
        raise ConfigError(
            f"{rounds} edge rounds are no multiple of the period {period} of {name!r}: its "
            "last cycle would be shorter than the others",
            key="rounds",
        )
