"""``hffm compare``: methods or variants side by side in accuracy, seconds, joules and bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from hffm_flower.cli import options
from hffm_flower.errors import ConfigError, Interrupted, one_of

LONGER: Final[Mapping[str, object]] = {"rounds": 24, "data.test-per-answer": 100}
"""What comparisons have on top of a preset; T is a multiple of every default period."""
SMOKE_ROUNDS: Final = 8
"""So is this."""


def compare_command(
    config: options.ConfigFile = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            show_default=False,
            help="local, star, edge-only, h-fedfm-eE, central; perhaps with +d2d (= +relay), "
            "+gossip, +cooperative. Default: the paper's.",
        ),
    ] = None,
    variants: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            show_default=False,
            help="In place of methods: settings in common and tables \\[variants.NAME].",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of every random draw.", show_default="1")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=100, help="Compare over the seeds 1 to N.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(options.PRESETS)}; with 24 rounds (smoke: 8).",
            show_default="small; none with --variants",
        ),
    ] = None,
    rounds: options.Rounds = None,
    devices: options.Devices = None,
    edges: options.Edges = None,
    smoke: options.Smoke = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    sets: options.Set = None,
) -> None:
    """Train methods or variants on one federation; compare accuracy, latency, energy, bytes."""
    console = Console()
    if seeds is not None and seed is not None:
        raise ConfigError("--seed and --seeds exclude each other")
    if variants is not None and methods is not None:
        raise ConfigError("--methods and --variants exclude each other")
    if preset is None and variants is None:
        preset = "small"
    base: dict[str, object] = {}
    if preset:
        base = {**options.PRESETS[one_of("preset", preset, options.PRESETS)], **LONGER}
    if smoke or preset == "smoke":
        base |= {**options.PRESETS["smoke"], "rounds": SMOKE_ROUNDS}
    file, common = None, {}
    if variants is not None:
        from hffm_flower.session.variants import read_variants, variant_entries

        file = read_variants(variants)
        common = dict(file.common)
    chosen = options.configure(
        config, base={**base, **common}, origins=dict.fromkeys(common, str(variants)),
        sets=sets, rounds=rounds, devices=devices, edges=edges,
    )  # fmt: skip
    with console.status("checking settings, assets and data"):
        from hffm_flower.session.comparison import execute, prepare
        from hffm_flower.session.entries import DEFAULT, entries

        every = range(1, seeds + 1) if seeds else [1 if seed is None else seed]
        if file:
            wanted = variant_entries(chosen, file.variants, every)
        elif methods is not None:
            wanted = entries(chosen, [n.strip() for n in methods.split(",") if n.strip()], every)
        else:
            wanted = entries(chosen, DEFAULT, every)
        names = dict.fromkeys(entry.name for entry in wanted)
        root = out.expanduser() if out else Path("runs") / time.strftime("compare-%Y%m%d-%H%M%S")
        planned = prepare(wanted, root)
    console.print(
        f"[bold]{len(planned)} run{'s' * (len(planned) != 1)}[/]: {', '.join(names)}; "
        f"{chosen.tree.devices} devices in "
        f"{chosen.tree.edges} clusters, {chosen.model.backbone}, T = {chosen.rounds}, "
        + (f"seeds 1 to {seeds}" if seeds else f"seed {1 if seed is None else seed}")
    )
    display = Display(console, {str(p.files.root.resolve()): p.entry.name for p in planned},
                      chosen.rounds)  # fmt: skip
    try:
        with display.live:
            result = execute(planned, root, display.show)
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted(f"what has finished is kept in {root}") from error
    for each in closing_tables(result.rows):
        console.print(each)
    if any(row["dropped"] for row in result.rows):
        console.print("why answers were dropped: rounds.jsonl of each run", style="yellow")
    console.print("latency and energy: radio model, see docs/d2d.md; cycle: edge models (or "
                  "devices', where modules stay there), over each row's last cycle")  # fmt: skip
    console.print(f"results in [bold]{root}[/]: table.csv, table.tex, table.json, accuracy.png, "
                  "costs.png, and a folder for each run")  # fmt: skip


class Display:
    """Live view: a bar over the edge rounds of all runs, and the one under way."""

    def __init__(self, console: Console, names: Mapping[str, str], rounds: int) -> None:
        self.console, self.names, self.rounds = console, names, rounds
        self.began = time.monotonic()
        self.run = 0
        self.name = ""
        self.last: Mapping[str, Any] = {}
        self.dropped = 0
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
            TextColumn("{task.fields[note]}"), console=console,
        )  # fmt: skip
        self.total = self.bar.add_task("edge rounds", total=rounds * len(names), note="starting")
        self.inner = self.bar.add_task("devices", total=None, note="")
        self.live = Live(self.bar, console=console, refresh_per_second=4, transient=True)

    def show(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        if event["event"] == "run":
            self.close()
            self.run += 1
            self.name = self.names[event["out"]]
        elif event["event"] == "wait":
            self.bar.update(
                self.inner, completed=int(event["done"]), total=int(event["of"]),
                note=str(event["phase"]),
            )  # fmt: skip
        elif event["event"] == "stopping":
            self.bar.update(self.total, note="stopping: saving what is finished")
            self.live.refresh()
        elif event["event"] == "round":
            self.last = event
            self.dropped += int(event["dropped"])
            done = self.rounds * (self.run - 1) + int(event["t"])
            left_s = (time.monotonic() - self.began) / done * (self.rounds * len(self.names) - done)
            note = f"{self.name}, {int(left_s) // 60}:{int(left_s) % 60:02d} left"
            self.bar.update(self.total, completed=done, note=note)
            if int(event["t"]) == self.rounds:
                self.close()

    def close(self) -> None:
        """Say how the run that was under way has ended."""
        if self.last:
            tiers = "  ".join(f"{k} {v:.3f}" for k, v in self.last["mean_global"].items())
            tiers += f"  [yellow]{self.dropped} answers dropped[/]" * bool(self.dropped)
            minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
            self.console.print(
                f"  {minutes:>2}:{seconds:02d}  {self.name:<18} t = {self.last['t']}  {tiers}",
                highlight=False,
            )
        self.last, self.dropped = {}, 0


def closing_tables(rows: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """The comparison in tables that fit a terminal, costs per edge round."""
    what = "variant" if any("settings" in row for row in rows) else "method"
    figures = Table(title="accuracy (after the last round; over the last cycle), cost a round")
    for column in (what, "accuracy", "cycle", "latency [s]", "energy [J]"):
        figures.add_column(escape(column), justify="left" if column == what else "right")
    if lost := any(row["dropped"] for row in rows):
        figures.add_column("answers dropped", justify="right", style="yellow")
    traffic = Table(title="modules sent in an edge round [MB]")
    for column in (what, "uplink", "downlink", "D2D", "backhaul"):
        traffic.add_column(column, justify="left" if column == what else "right")
    kinds = Table(title="the same over all links, by kind of module [MB]")
    sent = [kind for kind in rows[0]["kind_bytes"] if any(row["kind_bytes"][kind] for row in rows)]
    for column in (what, *sent):
        kinds.add_column(column, justify="left" if column == what else "right")
    for row in rows:
        figures.add_row(
            row["method"], _cell(row, "accuracy", 3), _cell(row, "accuracy_cycle", 3),
            _cell(row, "latency_s", 2), _cell(row, "energy_j", 1),
            *([str(row["dropped"])] if lost else []),
        )  # fmt: skip
        traffic.add_row(row["method"], *(f"{v / 1e6:.2f}" for v in row["bytes"].values()))
        kinds.add_row(row["method"], *(f"{row['kind_bytes'][kind] / 1e6:.2f}" for kind in sent))
    yield figures
    yield traffic
    if sent:
        yield kinds


def _cell(row: Mapping[str, Any], figure: str, digits: int) -> str:
    if row[figure] is None:
        return "-"
    spread = row[f"{figure}_spread"]
    return f"{row[figure]:.{digits}f}" + ("" if spread is None else f" ±{spread:.{digits}f}")
