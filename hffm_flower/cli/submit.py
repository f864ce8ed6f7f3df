"""``hffm submit``, ``status``, ``stop``: runs of a tree, on its cloud's machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hffm_flower.cli import options
from hffm_flower.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from hffm_flower.config import RunConfig
    from hffm_flower.report import RoundReport
    from hffm_flower.runfiles import RunFiles
    from hffm_flower.session.bundle import Flwr
    from hffm_flower.session.roles import CloudRole

CloudFile = Annotated[
    Path, typer.Argument(metavar="CLOUD.toml", help="The role that hffm cloud was started with.")
]


def submit_command(
    role: CloudFile,
    config: options.ConfigFile = None,
    rounds: options.Rounds = None,
    seed: options.Seed = None,
    smoke: options.Smoke = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show its rounds; end with it, code 1 if it failed.")
    ] = False,
    sets: options.Set = None,
) -> None:
    """Hand a run in to a cloud that is up; the edges' files must hold the same settings."""
    from hffm_flower.session.folders import take_folder
    from hffm_flower.session.roles import CloudRole
    from hffm_flower.session.serving import check_deployable, submit

    chosen = CloudRole.load(role)
    settings = options.configure(config, smoke=smoke, sets=sets, rounds=rounds, seed=seed)
    check_deployable(settings)

    def take() -> RunFiles:
        return take_folder(settings, out, origin="--out")

    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="hffm-submit-") as home:
        run_id, files = submit(chosen, settings, take, Path(home))
        root = files.root.resolve()
        console.print(f"run [bold]{run_id}[/] handed in; results come into {root}", soft_wrap=True)
        if wait:
            _wait(chosen, run_id, files, settings, home=Path(home))


def _wait(role: CloudRole, run_id: int, files: RunFiles, config: RunConfig, *, home: Path) -> None:
    """Show a run's rounds and its figures.

    Raises:
        HffmError: It has failed.
    """
    from hffm_flower.cli.run import closing_table
    from hffm_flower.session.following import follow

    console = Console(highlight=False)

    def show(report: RoundReport) -> None:
        loss = report.loss_sum / max(1, report.trained)
        dropped = f", {len(report.dropped)} dropped" if report.dropped else ""
        devices = f"{len(report.devices)} devices{dropped}"
        console.print(f"round {report.t}/{config.rounds}: {devices}, loss {loss:.3f}")

    try:
        follow(role, run_id, files, show, config=config, home=home)
    except KeyboardInterrupt as error:
        raise Interrupted(f"run {run_id} goes on without being followed") from error
    console.print(closing_table(files.result()))


def status_command(role: CloudFile) -> None:
    """Show the runs and the nodes of a cloud that is up."""
    console = Console(highlight=False)
    with _cloud(role) as flwr:
        runs, nodes = flwr.runs("cloud"), flwr.nodes("cloud")
    table = Table(title="runs")
    for column in ("run", "status", "seconds", "why"):
        table.add_column(column, overflow="fold")
    for run in runs:
        table.add_row(str(run.run_id), run.status, f"{run.elapsed:.0f}", escape(run.details))
    console.print(table)
    online = sum(node.get("status") == "online" for node in nodes)
    console.print(f"{online} of {len(nodes)} edges online")


def stop_command(
    role: CloudFile,
    run: Annotated[int | None, typer.Argument(metavar="[RUN]", help="Default: the latest.")] = None,
) -> None:
    """Stop a run of a cloud that is up."""
    with _cloud(role) as flwr:
        if run is None:
            going = [r.run_id for r in flwr.runs("cloud") if not r.over]
            if not going:
                raise ConfigError("no run is at work there")
            run = going[0]
        flwr.stop("cloud", run)
    Console(highlight=False).print(f"run {run} stopped")


@contextmanager
def _cloud(role: Path) -> Iterator[Flwr]:
    from hffm_flower.session.bundle import Flwr
    from hffm_flower.session.roles import CloudRole

    chosen = CloudRole.load(role)
    with tempfile.TemporaryDirectory(prefix="hffm-flwr-") as home:
        flwr = Flwr(Path(home))
        flwr.connect("cloud", chosen.superlink, chosen.authority)
        yield flwr
