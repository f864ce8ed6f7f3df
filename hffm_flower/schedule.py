"""Where each module is averaged, and how often: scopes, periods and the policy string.

A policy is one string of ``pattern=place`` items, first match wins::

    prompt/*=edge  head/*=cloud:1  adapter/*=cloud:8  personal/*=device

The published methods are policies too (`METHODS`), not code paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final, Self

from hffm_flower.errors import ConfigError
from hffm_flower.modules import ModuleKey


class Scope(StrEnum):
    """Highest tier at which a module is averaged."""

    DEVICE = "device"
    EDGE = "edge"
    CLOUD = "cloud"


@dataclass(frozen=True, slots=True)
class Method:
    """A published method, as settings.

    Attributes:
        policy: Policy of every module that no pattern of the user names; ``{period}`` is
            the configured number of edge rounds per cloud round.
        flat: Devices hang on the cloud directly, without edges.
        pooled: One model on the pooled data, no federation (the upper bound).
    """

    policy: str
    flat: bool = False
    pooled: bool = False

    @property
    def clusterless(self) -> bool:
        """Whether no cluster of devices ever averages anything, so that D2D has no use."""
        return self.flat or self.pooled or self.policy == "*=device"


METHODS: Final[Mapping[str, Method]] = {
    "local": Method("*=device"),
    "star": Method("*=cloud:1", flat=True),
    "edge-only": Method("*=edge"),
    "h-fedfm": Method("*=cloud:{period}"),
    "central": Method("*=device", flat=True, pooled=True),
}


@dataclass(frozen=True, slots=True)
class Placement:
    """Scope of a module, and for cloud scope its period [edge rounds per cloud round]."""

    scope: Scope
    period: int = 1

    @classmethod
    def parse(cls, text: str, *, key: str = "server.modules") -> Self:
        """Read ``device``, ``edge``, ``cloud`` or ``cloud:E`` with E >= 1.

        Raises:
            ConfigError: It is none of them.
        """
        scope, colon, period = text.partition(":")
        allowed = "allowed: device, edge, cloud, cloud:E with a whole number E >= 1"
        if scope not in list(Scope) or (colon and scope != Scope.CLOUD):
            raise ConfigError(f"place {text!r} of a module is unknown; {allowed}", key=key)
        if colon and not (period.isascii() and period.isdigit() and int(period) >= 1):
            raise ConfigError(f"period {period!r} in {text!r} is not valid; {allowed}", key=key)
        return cls(Scope(scope), int(period) if colon else 1)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Placement of every module of a run, and the clock that follows from it.

    The clock is the absolute edge round t = 1..T for every method, so that methods train
    equally. A module of cloud scope goes to the cloud when t is a multiple of its period,
    and at t = T.
    """

    placements: Mapping[ModuleKey, Placement]
    rounds: int

    @classmethod
    def of(
        cls, keys: Iterable[ModuleKey], *, method: str, policy: str, period: int, rounds: int
    ) -> Self:
        """Place every module of ``keys``: the user's ``policy`` first, then the method's.

        Raises:
            ConfigError: A pattern matches no module, or a place is not valid.
        """
        names = sorted(keys)
        items = list(_items(policy))
        for pattern, _ in items:
            if not any(fnmatchcase(str(k), pattern) for k in names):
                raise ConfigError(
                    f"pattern {pattern!r} matches no module; "
                    f"modules of this run: {', '.join(map(str, names))}",
                    key="server.modules",
                )
        items += _items(METHODS[method].policy.format(period=period))
        return cls({k: _first(items, k) for k in names}, rounds)

    def scoped(self, scope: Scope) -> tuple[ModuleKey, ...]:
        """Modules of that scope, in order."""
        return tuple(k for k, p in self.placements.items() if p.scope is scope)

    def due(self, t: int) -> tuple[ModuleKey, ...]:
        """Modules that the cloud averages after edge round ``t``."""
        return tuple(
            k for k in self.scoped(Scope.CLOUD)
            if t == self.rounds or t % self.placements[k].period == 0
        )  # fmt: skip

    def cycle(self) -> int:
        """Longest period of a module [edge rounds]; 1 where nothing reaches the cloud."""
        return max((self.placements[k].period for k in self.scoped(Scope.CLOUD)), default=1)

    def exchanges(self, report_every: int) -> tuple[int, ...]:
        """Edge rounds after which edges report to the cloud, the last being T.

        Where any module reaches the cloud these are its exchanges; otherwise every
        ``report_every`` rounds the edges report figures without modules.
        """
        rounds = range(1, self.rounds + 1)
        if self.scoped(Scope.CLOUD):
            return tuple(t for t in rounds if self.due(t))
        return tuple(t for t in rounds if t == self.rounds or t % report_every == 0)

    def edge_evaluations(self, report_every: int) -> tuple[int, ...]:
        """Edge rounds after which edges (or devices) evaluate what they hold.

        Every edge round of the last cloud cycle, so that no method is judged by one lucky
        moment; where nothing reaches the cloud, at every report.
        """
        if self.scoped(Scope.CLOUD):
            return tuple(range(max(1, self.rounds - self.cycle() + 1), self.rounds + 1))
        return self.exchanges(report_every)


def resting(
    keys: Iterable[ModuleKey], t: int, *, method: str, policy: str, period: int
) -> frozenset[ModuleKey]:
    """Factors of alternated LoRA that are not trained in edge round ``t``.

    Keys that end with ``.B`` are trained first, then those with ``.A``, and so on; each for as
    long as the module's period, so that between two aggregations of the whole tree only one
    factor changes and its mean is exact. Source: RoLoRA, arXiv 2502.01755.
    """
    items = [*_items(policy), *_items(METHODS[method].policy.format(period=period))]
    found = set()
    for key in keys:
        if key.name[-2:] in (".A", ".B"):
            whole = ModuleKey(key.kind, f"{key.name[:-2]}.B")
            turn = (t - 1) // _first(items, whole).period % 2
            if turn != (key.name[-1] == "A"):
                found.add(key)
    return frozenset(found)


def _first(items: Iterable[tuple[str, Placement]], key: ModuleKey) -> Placement:
    """Place of the first pattern that matches."""
    return next(place for pattern, place in items if fnmatchcase(str(key), pattern))


def _items(policy: str) -> Iterator[tuple[str, Placement]]:
    for item in policy.split():
        pattern, equals, place = item.partition("=")
        if not equals or not pattern:
            raise ConfigError(
                f"policy item {item!r} is not of the form pattern=place, "
                "e.g. 'head/*=cloud:1 adapter/*=edge'",
                key="server.modules",
            )
        yield pattern, Placement.parse(place)
