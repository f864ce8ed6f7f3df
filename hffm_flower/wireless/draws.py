"""All that is random in the case study: positions, fading and heads; drawn, or from a file.

The file is JSON with a list ``runs``; what a run must hold is named in `read_draws`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from hffm_flower.errors import ConfigError
from hffm_flower.placement import Layout, Site, place
from hffm_flower.routes import Link
from hffm_flower.seeding import generator
from hffm_flower.topology import Clusters, check_clusters, check_positions
from hffm_flower.wireless.units import Array, positive

Json = Mapping[str, object]
LARGEST: Final = 1e12
"""Of a coordinate [m] or a fading factor."""
LONGEST_LINK: Final = 40
"""Letters of a link's name."""


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """One run's random draws.

    Attributes:
        seed: Name of the run.
        layout: Who stands where and belongs to whom; no cluster is empty.
        heads: Device of each cluster that alone uses the uplink under D2D.
        uplink_fading: ``a^2 + b^2`` of each device's uplink ``[N]``, a and b ~ N(0, 1).
        pairs: All ordered pairs of devices of one cluster, (sender, receiver).
        pair_fading: ``a^2 + b^2`` of each of them ``[P]``.

    Raises:
        ConfigError: The parts do not fit together.
    """

    seed: int
    layout: Layout
    heads: tuple[int, ...]
    uplink_fading: Array
    pairs: tuple[Link, ...]
    pair_fading: Array

    def __post_init__(self) -> None:
        layout = self.layout
        check_positions("device", layout.positions_m)
        check_positions("edge", layout.edge_positions_m)
        devices, edges = len(layout.positions_m), len(layout.edge_positions_m)
        check_clusters(layout.clusters, devices=devices, edges=edges)
        if len(self.heads) != edges:
            raise ConfigError(f"{len(self.heads)} heads for {edges} clusters")
        for cluster, (head, members) in enumerate(zip(self.heads, layout.clusters, strict=True)):
            if head not in members:
                raise ConfigError(f"head {head} is not in its cluster {cluster}: {list(members)}")
        if set(self.pairs) != set(pairs_of(layout.clusters)) or len(self.pairs) != len(
            self.pair_fading
        ):
            odd = sorted(set(self.pairs) ^ set(pairs_of(layout.clusters)))
            raise ConfigError(
                "D2D fading is needed for every ordered pair inside a cluster and no other; "
                f"missing or extra: {', '.join(f'{a}->{b}' for a, b in odd[:5])}"
            )
        if len(self.uplink_fading) != devices:
            raise ConfigError(f"{len(self.uplink_fading)} uplinks faded for {devices} devices")
        positive("uplink fading", self.uplink_fading)
        positive("D2D fading", self.pair_fading)


def pairs_of(groups: Clusters) -> tuple[Link, ...]:
    """Ordered pairs of devices inside a cluster, sorted."""
    return tuple(sorted(p for g in groups for p in itertools.permutations(g, 2)))


def draw_case_study(seed: int, site: Site | None = None) -> Draws:
    """Draw positions, fading and heads by the laws of the published case study."""
    layout = place("case-study", site or Site(), seed)
    pairs = pairs_of(layout.clusters)
    heads = generator(seed, "heads")
    return Draws(
        seed=seed,
        layout=layout,
        heads=tuple(int(heads.choice(members)) for members in layout.clusters),
        uplink_fading=_fading(generator(seed, "fading", "uplink"), len(layout.positions_m)),
        pairs=pairs,
        pair_fading=_fading(generator(seed, "fading", "d2d"), len(pairs)),
    )


def _fading(rng: np.random.Generator, links: int) -> Array:
    return np.asarray((rng.standard_normal((links, 2)) ** 2).sum(axis=1))


def read_draws(path: Path) -> tuple[Draws, ...]:
    """Read the runs of a JSON file, in its order.

    Every run holds ``seed``, ``server_positions_m``, ``user_positions_m`` (lists of [x, y]),
    ``clusters`` (edge -> devices), ``aggregators`` (edge -> head), ``uplink_fading_ab``
    (device -> [a, b]) and ``d2d_fading_ab`` ("i->j" -> [a, b]). Anything else is ignored.

    Raises:
        ConfigError: The file or a run is not usable; the message names the run and the field.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply for draws") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the draws {str(path)!r}: {error}") from error
    runs = found.get("runs") if isinstance(found, dict) else None
    if not isinstance(runs, list) or not runs:
        raise ConfigError(f"{path} has no list 'runs' of draws")
    draws = []
    for index, run in enumerate(runs):
        try:
            draws.append(_run(run))
        except ConfigError as error:
            raise ConfigError(f"{path}, runs[{index}]: {error}") from error
    return tuple(draws)


def _run(run: object) -> Draws:
    if not isinstance(run, dict):
        raise ConfigError(f"a run is a table, not {run!r:.60}")
    seed = run.get("seed", 0)
    if not isinstance(seed, int):
        raise ConfigError(f"seed is {seed!r}; expected a whole number")
    edges, users = _points(run, "server_positions_m"), _points(run, "user_positions_m")
    members = _by_index(run, "clusters", len(edges))
    heads = _by_index(run, "aggregators", len(edges))
    uplinks = _by_index(run, "uplink_fading_ab", len(users))
    peers = {_link(name): _power(ab, name) for name, ab in _table(run, "d2d_fading_ab").items()}
    for cluster, group in enumerate(members):
        if not isinstance(group, list) or not group:
            raise ConfigError(f"clusters[{cluster}] is {group!r:.60}; expected devices")
    groups = tuple(tuple(_index(d, "device") for d in g) for g in members if isinstance(g, list))
    pairs = tuple(sorted(peers))
    for a, b in pairs:
        if not (0 <= a < len(users) and 0 <= b < len(users)):
            raise ConfigError(f"link {a}->{b} names an unknown device; 0..{len(users) - 1}")
    return Draws(
        seed=seed,
        layout=Layout(users, edges, groups),
        heads=tuple(_index(h, "head") for h in heads),
        uplink_fading=np.array([_power(ab, f"device {i}") for i, ab in enumerate(uplinks)]),
        pairs=pairs,
        pair_fading=np.array([peers[p] for p in pairs], dtype=np.float64),
    )


def _field(run: Json, name: str) -> object:
    if name not in run:
        raise ConfigError(f"{name} is missing")
    return run[name]


def _table(run: Json, name: str) -> Json:
    table = _field(run, name)
    if not isinstance(table, dict):
        raise ConfigError(f"{name} is {table!r:.60}; expected a table")
    return table


def _by_index(run: Json, name: str, count: int) -> list[object]:
    table = _table(run, name)
    if set(table) != {str(i) for i in range(count)}:
        odd = sorted(set(table) ^ {str(i) for i in range(count)})
        raise ConfigError(f"{name} needs the keys 0..{count - 1}; missing or extra: {odd[:5]}")
    return [table[str(i)] for i in range(count)]


def _points(run: Json, name: str) -> Array:
    points = _field(run, name)
    if not isinstance(points, list) or not points:
        raise ConfigError(f"{name} is {points!r:.60}; expected a list of [x, y]")
    return np.array([_two(p, f"{name}[{i}]") for i, p in enumerate(points)])


def _two(value: object, what: str) -> tuple[float, float]:
    if (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(v, int | float) and abs(v) <= LARGEST for v in value)
    ):
        return float(value[0]), float(value[1])
    raise ConfigError(f"{what} is {value!r:.60}; expected two numbers of at most {LARGEST:g}")


def _power(ab: object, what: str) -> float:
    a, b = _two(ab, f"fading of {what}")
    return a * a + b * b


def _index(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{what} is {value!r:.60}; expected a whole number")
    return value


def _link(name: str) -> Link:
    a, arrow, b = name.partition("->")
    if not (arrow and a.isdecimal() and b.isdecimal() and len(name) < LONGEST_LINK):
        raise ConfigError(f"link {name!r} is not of the form 'i->j'")
    return int(a), int(b)
