"""``hffm network``: the cost side alone, seconds and joules of every method, no training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from hffm_flower.errors import ConfigError

if TYPE_CHECKING:
    from hffm_flower.wireless.published import Cost

SEEDS = 20


def network_command(
    mode: Annotated[
        str, typer.Option(help="published: the case study as it was; corrected: all fixes.")
    ] = "published",
    fix: Annotated[str, typer.Option(metavar="A,B", help="Fixes to make beside the mode's.")] = "",
    seeds: Annotated[
        int | None, typer.Option(help=f"Own draws, of seeds 1..N.  [default: {SEEDS}]")
    ] = None,
    draws: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON with draws in 'runs' instead.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A constant, e.g. uplink-hz=5e6."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every run, as JSON.")] = False,
) -> None:
    """Price the published case study's methods per edge round, as published or corrected."""
    from hffm_flower.wireless.case_study import CaseStudy, fixes_of
    from hffm_flower.wireless.draws import draw_case_study, read_draws
    from hffm_flower.wireless.published import price

    fixes = fixes_of(mode, [name.strip() for name in fix.split(",") if name.strip()])
    study = CaseStudy.of(sets or [])
    if draws is not None and seeds is not None:
        raise ConfigError("--draws brings its own runs; leave out --seeds")
    count = SEEDS if seeds is None else seeds
    if count < 1:
        raise ConfigError(f"--seeds {count} is not allowed; at least 1")
    origin = str(draws) if draws is not None else f"seeds 1..{count}"
    console = Console(stderr=as_json)
    with console.status("pricing"):
        drawn = (
            read_draws(draws) if draws is not None
            else tuple(draw_case_study(s) for s in range(1, count + 1))
        )  # fmt: skip
        costs = []
        for index, draw in enumerate(drawn):
            try:
                costs.append(price(draw, fixes=fixes, study=study).methods)
            except ConfigError as error:
                raise ConfigError(f"{origin}, runs[{index}]: {error}") from error
    names = sorted(fixes)
    if as_json:
        typer.echo(json.dumps({
            "mode": mode,
            "fixes": names,
            "runs": [
                {"seed": d.seed, "methods": _methods(cost)}
                for d, cost in zip(drawn, costs, strict=True)
            ],
        }, indent=1))  # fmt: skip
        return
    console.print(summary_table(costs, f"{mode}, {origin}; fixes: {', '.join(names) or 'none'}"))


def _methods(costs: Mapping[str, Cost]) -> dict[str, dict[str, float]]:
    return {m: {"latency_s": c.latency_s, "energy_j": c.energy_j} for m, c in costs.items()}


def summary_table(costs: Sequence[Mapping[str, Cost]], title: str) -> Table:
    """Median and spread of each method, and in which share of the runs it beats others."""
    from hffm_flower.wireless.summary import summarise

    table = Table(
        title=title,
        caption="per edge round, median and deciles over the runs; '<': share of the runs\n"
        "in which the method takes less than star, or than itself\nwithout D2D (plain): s/J",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("method", no_wrap=True)
    for column in ("s", "10..90 %", "J", "10..90 %", "< star", "< plain"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in summarise(costs):
        table.add_row(
            row.method, *_spread(row.latency_s, 2), *_spread(row.energy_j, 1),
            _shares(row.faster_than_star, row.cheaper_than_star),
            _shares(row.faster_than_twin, row.cheaper_than_twin),
        )  # fmt: skip
    return table


def _spread(values: tuple[float, float, float], digits: int) -> tuple[str, str]:
    low, middle, high = values
    return f"{middle:.{digits}f}", f"{low:.{digits - 1}f}..{high:.{digits - 1}f}"


def _shares(in_latency: float | None, in_energy: float | None) -> str:
    if in_latency is None or in_energy is None:
        return ""
    return f"{100 * in_latency:.0f}/{100 * in_energy:.0f}%"
