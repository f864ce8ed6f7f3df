"""``hffm up``: a whole tree of real processes on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hffm_flower.cli import options
from hffm_flower.cli.run import Display, closing_table
from hffm_flower.errors import ConfigError, Interrupted


def up_command(
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
    stock_nodes: Annotated[
        bool, typer.Option("--stock-nodes", help="flower-supernode in place of hffm node.")
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No TLS and no keys; everything is on loopback.")
    ] = False,
    sets: options.Set = None,
) -> None:
    """Bring up cloud, edges and devices as processes on this machine, and run a federation."""
    console = Console()
    chosen = options.configure(
        config, preset=preset, smoke=smoke, sets=sets, method=method, rounds=rounds,
        devices=devices, edges=edges, period=period, seed=seed, d2d=d2d, encoders=encoders,
    )  # fmt: skip
    with console.status("checking settings, assets and data"):
        from hffm_flower.session.deployment import up
        from hffm_flower.session.folders import take_folder
        from hffm_flower.session.local_roles import Kind
        from hffm_flower.session.preflight import check
        from hffm_flower.session.serving import check_deployable

        try:
            check_deployable(chosen)
        except ConfigError as error:
            raise chosen.locate(error) from error
        plan = check(chosen)
        files = take_folder(chosen, out, origin="--out")
    edges_up = 0 if chosen.flat else len(plan.groups)
    console.print(
        f"[bold]{chosen.method}[/], cloud, {edges_up} edges, {chosen.tree.devices} devices, "
        f"{'flower-supernode' if stock_nodes else 'long-lived nodes'}, "
        f"{'[yellow]no TLS[/]' if insecure else 'TLS'}, T = {chosen.rounds}, seed {chosen.seed}"
    )
    console.print(f"logs in {files.root / 'logs'}", highlight=False, soft_wrap=True)
    display = TreeDisplay(console, chosen.rounds)
    try:
        with display.live:
            result = up(chosen, plan, files, display.show, Kind(stock_nodes, insecure))
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted(f"the rounds so far are kept in {files.root}") from error
    console.print(closing_table(result.result))
    console.print(f"results in [bold]{files.root}[/]")


class TreeDisplay(Display):
    """Live view of a tree: processes, nodes, edge rounds."""

    def show(self, event: Mapping[str, object]) -> None:
        """Take one event."""
        if event["event"] != "tree":
            super().show(event)
            return
        up, of, online, nodes = (int(str(event[k])) for k in ("up", "of", "online", "nodes"))
        note = f"{online}/{nodes} nodes online, {event['phase']}"
        self.bar.update(
            self.inner, description=f"{up}/{of} processes", completed=online, total=nodes, note=note
        )
