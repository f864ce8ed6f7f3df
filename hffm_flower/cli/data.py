"""``hffm data``: who has what; ``hffm data prepare`` makes tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import click
import typer
import typer.core
from rich.console import Console
from rich.table import Table

from hffm_flower.cli import options
from hffm_flower.cli.prepare import prepare_command


class ShowByDefault(typer.core.TyperGroup):
    """What is no command's name is an argument or option of ``show``."""

    default: ClassVar[str] = "show"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``show`` in front where no command is named."""
        if not args or args[0] not in {*self.commands, *self.get_help_option_names(ctx)}:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


data = typer.Typer(
    cls=ShowByDefault,
    help="Show and plot which device holds what (hffm data show --help), or prepare a task.",
)


@data.command("show")
def show_command(
    config: options.ConfigFile = None,
    devices: options.Devices = None,
    edges: options.Edges = None,
    seed: options.Seed = None,
    smoke: options.Smoke = False,
    plot: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("data.png"),
    own: Annotated[
        Path | None,
        typer.Option(metavar="DEVICE.toml", help="Check the data of this device, nothing else."),
    ] = None,
    sets: options.Set = None,
) -> None:
    """Show and plot which device holds which modalities, tasks and examples."""
    console = Console()
    chosen = options.configure(
        config, smoke=smoke, sets=sets, devices=devices, edges=edges, seed=seed
    )
    if own is not None:
        from hffm_flower.cli.own import show_own

        show_own(chosen, own, console)
        return
    with console.status("drawing the partition"):
        from hffm_flower.session.pictures import check_picture
        from hffm_flower.session.plots import draw_data
        from hffm_flower.session.preflight import check

        check_picture(plot)
        plan = check(chosen, fits=False)
        drawn = draw_data(chosen, plan, plot)
    table = Table(title=f"{chosen.tree.devices} devices, seed {chosen.seed}")
    for column in ("edge", "device", "modalities", *chosen.data.tasks, "modules"):
        justify: Literal["left", "right"] = "left" if column == "modalities" else "right"
        table.add_column(column, justify=justify, overflow="fold")
    for edge, group in enumerate(plan.groups):
        for index in group:
            profile = plan.profiles[index]
            counts = [
                str(profile.tasks[t]) if t in profile.tasks else
                ("[dim]no modality[/]" if t in profile.wanted else "")
                for t in chosen.data.tasks
            ]  # fmt: skip
            held = " ".join(profile.modalities) or "-"
            modules = "[yellow]idle[/]" if profile.idle else str(len(plan.keys[index]))
            table.add_row(str(edge), str(index), held, *counts, modules)
        table.add_section()
    totals = [str(sum(p.tasks.get(t, 0) for p in plan.profiles)) for t in chosen.data.tasks]
    table.add_row("", "", "training examples", *totals, "")
    tests = [str(sum(p.tests.get(t, 0) for p in plan.profiles)) for t in chosen.data.tasks]
    table.add_row("", "", "test examples", *tests, "")
    console.print(table)
    if plan.idle:
        console.print(f"idle: {len(plan.idle)} devices ({', '.join(map(str, plan.idle))})")
    console.print(f"picture: {drawn}")


data.command("prepare")(prepare_command)
