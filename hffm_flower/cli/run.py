"""``hffm run``: run a federation on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from hffm_flower.cli import options
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError, Interrupted


def run_command(
    config: options.ConfigFile = None,
    method: options.Method = None,
    rounds: options.Rounds = None,
    devices: options.Devices = None,
    edges: options.Edges = None,
    period: options.Period = None,
    seed: options.Seed = None,
    d2d: options.D2D = None,
    encoders: options.Encoders = None,
    preset: options.Preset = None,
    smoke: options.Smoke = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    actors: Annotated[int | None, typer.Option(help="Ray actors; 0: one per CPU.")] = None,
    gpus_per_actor: Annotated[float | None, typer.Option(help="Share of a GPU each.")] = None,
    sets: options.Set = None,
) -> None:
    """Train a hierarchical multi-modal multi-task federation on this machine."""
    console = Console()
    chosen = options.configure(
        config, preset=preset, smoke=smoke, sets=sets, method=method, rounds=rounds,
        devices=devices, edges=edges, period=period, seed=seed, d2d=d2d, encoders=encoders,
        actors=actors, gpus_per_actor=gpus_per_actor,
    )  # fmt: skip
    with console.status("checking settings, assets and data"):
        from hffm_flower.session.folders import take_folder
        from hffm_flower.session.preflight import check
        from hffm_flower.session.run import execute

        if chosen.deploy.tier != "sim":
            raise chosen.locate(ConfigError(
                f"{chosen.deploy.tier!r} is set by hffm up, cloud and edge; allowed here: sim",
                key="deploy.tier",
            ))  # fmt: skip
        plan = check(chosen)
        files = take_folder(chosen, out, origin="--out")
    clusters = f" in {len(plan.groups)} clusters" if len(plan.groups) > 1 else ""
    if chosen.d2d.plan != "none":
        clusters += f", D2D {chosen.d2d.plan}"
    console.print(
        f"[bold]{chosen.method}[/], {chosen.tree.devices} devices{clusters}, "
        f"{len(chosen.data.tasks)} task{'s' * (len(chosen.data.tasks) != 1)}, "
        f"{chosen.model.backbone} ({chosen.model.weights} encoders{_trained(chosen)}), "
        f"T = {chosen.rounds}, seed {chosen.seed}"
    )
    if plan.idle:
        idle = ", ".join(map(str, plan.idle))
        console.print(f"idle devices, with no task that their modalities serve: {idle}")
    display = Display(console, chosen.rounds)
    try:
        with display.live:
            result = execute(chosen, plan, files, display.show)
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted(f"the rounds so far are kept in {files.root}") from error
    console.print(closing_table(result.result))
    console.print(f"results in [bold]{files.root}[/]")


def _trained(config: RunConfig) -> str:
    """What is trained other than by default."""
    model = config.model
    told: list[str] = [model.adapter] if model.adapter != "bottleneck" else []
    told += [f"rank {' '.join(map(str, model.lora_ranks))}, {config.server.lora_rule}"] * (
        model.adapter == "lora"
    )
    told += [*model.tune, *(f"prompts {p}" for p in model.prompts)]
    return "".join(f", {each}" for each in told)


class Display:
    """Live view of a run: a bar of edge rounds, the wait within one, the last figures."""

    def __init__(self, console: Console, rounds: int) -> None:
        self.console, self.rounds = console, rounds
        self.began = time.monotonic()
        self.first: float | None = None
        self.done = 0
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
            TextColumn("{task.fields[note]}"), console=console,
        )  # fmt: skip
        self.total = self.bar.add_task("edge rounds", total=rounds, note="starting")
        self.inner = self.bar.add_task("devices", total=None, note="")
        self.live = Live(self.bar, console=console, refresh_per_second=4, transient=True)

    def show(self, event: Mapping[str, object]) -> None:
        """Take one event of the run."""
        if event["event"] == "wait":
            done, of = int(str(event["done"])), int(str(event["of"]))
            self.bar.update(self.inner, completed=done, total=of, note=str(event["phase"]))
            if event["phase"] == "training" and self.first is None:
                self.first = time.monotonic()
        elif event["event"] == "stopping":
            self.bar.update(self.total, note="stopping: saving what is finished")
            self.live.refresh()
        elif event["event"] == "round":
            self.done = int(str(event["t"]))
            figures = event["mean_global"]
            assert isinstance(figures, Mapping)
            parts = [f"loss {float(str(event['loss'])):.3f}"]
            parts += [f"{tier} {value:.3f}" for tier, value in figures.items()]
            if event["dropped"]:
                parts.append(f"[yellow]{event['dropped']} dropped[/]")
            left = self._left()
            self.bar.update(self.total, completed=self.done, note=f"{left} left" if left else "")
            self.console.print(
                f"  round {self.done:>3}/{self.rounds}  {event['devices']:>3} devices  "
                + "  ".join(parts),
                highlight=False,
            )

    def _left(self) -> str:
        if not self.done or self.first is None:
            return ""
        each = (time.monotonic() - self.first) / self.done
        seconds = int(each * (self.rounds - self.done))
        return f"{seconds // 60}:{seconds % 60:02d}"


def closing_table(result: Mapping[str, object]) -> Table:
    """Final figures, by task."""
    summary = result["summary"]
    assert isinstance(summary, Mapping)
    config = RunConfig.from_flwr({**_mapping(result["config"]), "paths.out": "", "paths.state": ""})
    table = Table(
        title=f"{config.method} after edge round {summary['t']} ({summary['tier']} model)"
    )
    table.add_column("task")
    table.add_column("accuracy", justify="right")
    table.add_column("chance", justify="right")
    for task, value in _mapping(summary["per_task"]).items():
        hit = summary["hit"][task]
        name = task if hit == "accuracy" else f"{task}, {hit}"
        name += " (synthetic)" if task in summary["synthetic"] else ""
        table.add_row(name, f"{value:.3f}", f"{summary['chance'][task]:.3f}")
        if finer := summary["measures"].get(task):
            table.add_row(f"  {finer['name']}", f"{finer['value']:.3f}", f"{finer['chance']:.3f}")
    table.add_section()
    table.add_row("[bold]mean, global IID test[/]", f"[bold]{summary['mean_global']:.3f}[/]", "")
    table.add_row("mean, each device's own label mix", f"{summary['mean_personal']:.3f}", "")
    if summary["mean_global_cycle"] is not None:
        cycle = f"{summary['mean_global_cycle']:.3f}"
        tier = summary["cycle_tier"]
        table.add_row(f"mean over the last cloud cycle, {tier} models", cycle, "")
    if summary["latency_s"] and config.method != "central":
        table.add_section()
        table.add_row("radio model, an edge round takes", f"{summary['latency_s']:.1f} s", "")
        table.add_row("and costs, all nodes together", f"{summary['energy_j']:.1f} J", "")
    if summary["uncovered"]:
        table.add_row("test examples nobody evaluated", f"{summary['uncovered']:.1%}", "")
    if summary["dropped"]:
        table.add_row("answers dropped", str(summary["dropped"]), "")
    return table


def _mapping(value: object) -> Mapping[str, float]:
    assert isinstance(value, Mapping)
    return value
