"""Where devices and edge servers stand: placements drawn from a seed, or read from a file.

A new placement is a function of a `Site` and a generator, and one line in `PLACEMENTS`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from hffm_flower.errors import ConfigError, one_of
from hffm_flower.seeding import generator
from hffm_flower.topology import Clusters, Metres, check_clusters, check_positions, clusters

COLUMNS: Final = ("kind", "x_m", "y_m")
TRIES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Site:
    """What a placement has to place, and in which area.

    Attributes:
        devices: Number of devices.
        edges: Number of edge servers, at most one per device.
        area_m: Side of the square [m].
        separation_m: Least distance between two edge servers of the case study [m].
        centre_radius_m: Largest distance of a cluster's centre from its edge [m].
        device_radius_m: Largest distance of a device from its cluster's centre [m]; the
            standard deviation of "clustered" is half of it.
        coordinates: CSV file with the columns kind (device or edge), x_m, y_m and, for
            devices, optionally cluster.
    """

    devices: int = 40
    edges: int = 10
    area_m: float = 5000.0
    separation_m: float = 500.0
    centre_radius_m: float = 1000.0
    device_radius_m: float = 500.0
    coordinates: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.edges <= self.devices:
            raise ConfigError(
                f"{self.edges} edges and {self.devices} devices; needs 1 <= edges <= devices"
            )
        for name in ("area_m", "centre_radius_m", "device_radius_m"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}; it must be above 0 and finite")
        if not 0 <= self.separation_m < math.inf:
            raise ConfigError(f"separation_m = {self.separation_m}; it must be finite and >= 0")


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Positions of devices ``[N, 2]`` and edges ``[E, 2]`` [m], and who belongs to whom."""

    positions_m: Metres
    edge_positions_m: Metres
    clusters: Clusters


def place(placement: str, site: Site, seed: int) -> Layout:
    """Place everything by the named law; equal seeds give equal positions.

    Raises:
        ConfigError: Unknown placement, a site that has no room, or a faulty file.
    """
    law = PLACEMENTS[one_of("placement", placement, PLACEMENTS)]
    return law(site, generator(seed, "placement", placement))


def _case_study(site: Site, rng: np.random.Generator) -> Layout:
    edges: list[Metres] = []
    for index in range(site.edges):
        edges.append(_until(
            lambda: rng.uniform(0, site.area_m, 2),
            lambda point: all(math.dist(point, e) >= site.separation_m for e in edges),
            f"edge {index}, {site.separation_m:g} m from the others in {site.area_m:g} m",
        ))  # fmt: skip
    groups = clusters(site.devices, site.edges)
    positions = np.empty((site.devices, 2))
    for edge, members in zip(edges, groups, strict=True):
        centre = _inside(site, lambda: edge + _in_disc(rng, site.centre_radius_m))  # noqa: B023
        for device in members:
            positions[device] = _inside(
                site,
                lambda: centre + _in_disc(rng, site.device_radius_m),  # noqa: B023
            )
    return Layout(positions, np.array(edges), groups)


def _uniform(site: Site, rng: np.random.Generator) -> Layout:
    return Layout(
        rng.uniform(0, site.area_m, (site.devices, 2)),
        rng.uniform(0, site.area_m, (site.edges, 2)),
        clusters(site.devices, site.edges),
    )


def _clustered(site: Site, rng: np.random.Generator) -> Layout:
    edges = rng.uniform(0, site.area_m, (site.edges, 2))
    groups = clusters(site.devices, site.edges)
    positions = np.empty((site.devices, 2))
    for edge, members in zip(edges, groups, strict=True):
        for device in members:
            positions[device] = _inside(
                site,
                lambda: edge + rng.normal(0, site.device_radius_m / 2, 2),  # noqa: B023
            )
    return Layout(positions, edges, groups)


def _coordinates(site: Site, rng: np.random.Generator) -> Layout:
    if site.coordinates is None:
        raise ConfigError("placement 'coordinates' needs a file: kind,x_m,y_m[,cluster]")
    return read_layout(site.coordinates)


PLACEMENTS: Final[Mapping[str, Callable[[Site, np.random.Generator], Layout]]] = {
    "case-study": _case_study,
    "uniform": _uniform,
    "clustered": _clustered,
    "coordinates": _coordinates,
}
"""Laws of positions. "case-study": edges apart from each other, around each a cluster's centre,
around that its devices, uniform in discs; "uniform": all anywhere, clusters by index;
"clustered": devices normally distributed around their edge; "coordinates": a file's."""


def read_layout(path: Path) -> Layout:
    """Read a CSV file of coordinates; devices and edges are numbered in the file's order.

    Without the column ``cluster`` (a device's edge), consecutive devices share an edge.

    Raises:
        ConfigError: Unreadable, a column is missing, or a value is not usable; with the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            rows, columns = [(reader.line_num, row) for row in reader], reader.fieldnames or ()
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"cannot read the coordinates {str(path)!r}: {error}") from error
    missing = [c for c in COLUMNS if c not in columns]
    if missing:
        raise ConfigError(f"{path} has no column {', '.join(missing)}; needed: {','.join(COLUMNS)}")
    twice = sorted({c for c in columns if list(columns).count(c) > 1})
    if twice:
        raise ConfigError(f"{path} has the column {', '.join(twice)} more than once")
    points: dict[str, list[list[float]]] = {"device": [], "edge": []}
    chosen: list[int | None] = []
    for line, row in rows:
        where = f"{path}, line {line}"
        if None in row:
            raise ConfigError(f"{where}: more fields than the {len(columns)} columns")
        kind = one_of(f"kind ({where})", str(row["kind"]), points)
        points[kind].append([_number(row[c], f"{c} ({where})") for c in ("x_m", "y_m")])
        if kind == "device":
            text = row.get("cluster")
            chosen.append(int(_number(text, f"cluster ({where})", whole=True)) if text else None)
    positions, edges = (np.array(points[k]).reshape(-1, 2) for k in ("device", "edge"))
    for what, array in (("device", positions), ("edge", edges)):
        check_positions(f"{path}: {what}", array)
    return Layout(positions, edges, _clusters_of(chosen, len(edges), path))


def _clusters_of(chosen: list[int | None], edges: int, path: Path) -> Clusters:
    if all(c is None for c in chosen):
        if edges > len(chosen):
            raise ConfigError(f"{path}: {edges} edges are more than {len(chosen)} devices")
        return clusters(len(chosen), edges)
    for device, edge in enumerate(chosen):
        if edge is None or not 0 <= edge < edges:
            raise ConfigError(f"{path}: device {device} is in cluster {edge}, not 0..{edges - 1}")
    groups = tuple(tuple(d for d, c in enumerate(chosen) if c == e) for e in range(edges))
    check_clusters(groups, devices=len(chosen), edges=edges)
    return groups


def _number(text: str | None, what: str, *, whole: bool = False) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (whole and value != int(value)):
        kind = "whole" if whole else "finite"
        raise ConfigError(f"{what} is {text!r}; expected a {kind} number")
    return value


def _in_disc(rng: np.random.Generator, radius_m: float) -> Metres:
    distance_m, angle = radius_m * math.sqrt(rng.random()), rng.uniform(0, 2 * math.pi)
    return distance_m * np.array([math.cos(angle), math.sin(angle)])


def _inside(site: Site, draw: Callable[[], Metres]) -> Metres:
    return _until(
        draw,
        lambda point: bool(((point >= 0) & (point <= site.area_m)).all()),
        f"a point inside {site.area_m:g} m",
    )


def _until(draw: Callable[[], Metres], fits: Callable[[Metres], bool], what: str) -> Metres:
    for _ in range(TRIES):
        point = draw()
        if fits(point):
            return point
    raise ConfigError(f"no room for {what} after {TRIES} draws; take a larger area or fewer edges")
