"""``hffm testbed``: the tree of ``hffm up`` on links that are those of the radio model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hffm_flower.cli import options
from hffm_flower.cli.up import TreeDisplay
from hffm_flower.errors import ConfigError, HffmError, Interrupted

if TYPE_CHECKING:
    from hffm_flower.testbed.control import Carried
    from hffm_flower.testbed.measure import Timed
    from hffm_flower.testbed.report import Outcome

SMOKE: Final[Mapping[str, object]] = {
    **options.PRESETS["smoke"], "rounds": 2, "tree.devices": 4, "d2d.plan": "relay",
    "data.tasks": "easyvqa10 emojivqa10", "data.full-modality-share": 1.0,
}  # fmt: skip
"""A federation that is done in a minute or two, also over slow links."""
PICTURE: Final = "testbed.png"


def bed_command(
    topology: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TOPOLOGY.toml]", help="Settings of a run; \\[radio] says where nodes are."
        ),
    ] = None,
    scenario: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Faults on the wire: one run for each scenario."),
    ] = None,
    docker: Annotated[
        str | None,
        typer.Option(
            metavar="PROJECT",
            show_default=False,
            help="Shape the links of this Compose project's containers instead.",
        ),
    ] = None,
    smoke: options.Smoke = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS and no keys.")] = False,
    sets: options.Set = None,
) -> None:
    """Run a federation in network namespaces, over links with the radio model's rates."""
    console = Console()
    chosen = options.configure(topology, base=SMOKE if smoke else None, sets=sets)
    with console.status("checking settings, assets and data"):
        from hffm_flower.session.folders import take_folder
        from hffm_flower.session.preflight import check
        from hffm_flower.session.serving import check_deployable
        from hffm_flower.testbed.containers import find_containers
        from hffm_flower.testbed.hosts import check_scratch, nodes_of
        from hffm_flower.testbed.namespaces import check_allowed
        from hffm_flower.testbed.run import run_scenario, shape_containers
        from hffm_flower.testbed.scenario import load_scenarios
        from hffm_flower.tree import plant

        check_allowed()
        check_scratch()
        try:
            check_deployable(chosen)
            network = plant(chosen)
        except ConfigError as error:
            raise chosen.locate(error) from error
        scenarios = (
            load_scenarios(scenario, network.topology, chosen.rounds) if scenario else {"": ()}
        )
        if docker is not None:
            if len(scenarios) > 1:
                raise ConfigError(
                    f"--docker: {scenario} holds {len(scenarios)} scenarios; one run of the "
                    "containers can have one"
                )
            find_containers(docker, nodes_of(network))
        plan = check(chosen)
        usual = Path("runs") / time.strftime("testbed-%Y%m%d-%H%M%S")
        root = (out or usual).expanduser().absolute()  # devices write there too, from elsewhere
        folders = {name: take_folder(chosen, root / name, origin="--out") for name in scenarios}
    console.print(
        f"[bold]{chosen.method}[/], {network.topology.edges} edges, {chosen.tree.devices} devices, "
        f"{chosen.radio.channel} channel, T = {chosen.rounds}, seed {chosen.seed}"
    )
    outcomes: list[Outcome] = []
    for name, faults in scenarios.items():
        if name:
            console.print(f"[bold]{name}[/]: {'; '.join(f.told() for f in faults) or 'no faults'}")
        display = BedDisplay(console, chosen.rounds)
        try:
            with display.live:
                if docker is not None:
                    outcome = shape_containers(
                        docker, name, faults, chosen, folders[name].root, display.show
                    )
                else:
                    outcome = run_scenario(
                        name, faults, chosen, plan, folders[name], display.show, insecure=insecure
                    )
        except (KeyboardInterrupt, Interrupted) as error:
            raise Interrupted(f"the rounds so far are kept in {root}") from error
        outcomes.append(outcome)
        _tell_links(console, outcome, f"{chosen.tree.devices} devices, seed {chosen.seed}")
    _tell(console, outcomes, root)


def _tell_links(console: Console, outcome: Outcome, title: str) -> None:
    """What went over the links in one run."""
    from hffm_flower.testbed.plot import draw_times

    if outcome.messages:
        title = f"{outcome.scenario or 'messages'}: {title}"
        draw_times(outcome.messages, outcome.folder / PICTURE, title=title)
        console.print(messages_table(outcome.messages))
    else:
        console.print("no message was timed", style="yellow")
    if outcome.carried is not None:
        console.print(emulator_cost(outcome.carried), highlight=False)


def _tell(console: Console, outcomes: Sequence[Outcome], root: Path) -> None:
    """What came of each scenario, and why some failed.

    Raises:
        HffmError: The only run, under no scenario, has failed.
    """
    console.print(outcomes_table(outcomes))
    for outcome in outcomes:
        if outcome.reason and outcome.scenario:
            said = escape(f"{outcome.scenario} failed: {outcome.reason}")
            console.print(said, style="red", soft_wrap=True)
    console.print(f"results in [bold]{escape(str(root))}[/]", soft_wrap=True)
    if outcomes[0].status == "failed" and not outcomes[0].scenario:
        raise HffmError(f"the run: {outcomes[0].reason}")


class BedDisplay(TreeDisplay):
    """Live view of a tree, or of what happens to the links of containers."""

    def show(self, event: Mapping[str, object]) -> None:
        """Take one event."""
        if event["event"] in ("fault", "mended"):
            self.console.print(escape(f"  {event['event']}: {event['fault']}"), highlight=False)
        elif event["event"] == "round" and "edge" in event:
            self.console.print(f"  edge {event['edge']} is in round {event['t']}", highlight=False)
        else:
            super().show(event)


def messages_table(messages: Sequence[Timed]) -> Table:
    """Modelled beside measured time, by class of links; medians."""
    from hffm_flower.testbed.measure import summaries

    table = Table(title="messages, medians")
    for column in ("link", "number", "kB", "model [s]", "measured [s]", "ratio",
                   "Flower's [s]", "waited"):  # fmt: skip
        table.add_column(column, justify="left" if column == "link" else "right")
    for row in summaries(messages):
        table.add_row(
            f"Flower {row.link}" if row.flower else row.link, str(row.messages),
            f"{row.bytes / 1e3:.0f}", f"{row.modelled_s:.2f}", f"{row.measured_s:.2f}",
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            f"{row.overhead_s:.2f}" if row.flower else "-",
            "-" if row.flower else str(row.waited),
        )  # fmt: skip
    return table


def outcomes_table(outcomes: Sequence[Outcome]) -> Table:
    """What came of each scenario."""
    table = Table(title="outcome")
    for column in ("scenario", "status", "rounds", "void", "dropped", "accuracy", "s", "model [s]"):
        table.add_column(column, justify="left" if column == "scenario" else "right")
    for each in outcomes:
        table.add_row(
            each.scenario or "-", each.status, str(each.rounds), str(each.void), str(each.dropped),
            "-" if each.accuracy is None else f"{each.accuracy:.3f}", f"{each.seconds:.0f}",
            f"{each.modelled_s:.0f}",
        )  # fmt: skip
    return table


def emulator_cost(carried: Carried) -> str:
    """What the emulator has carried, and what that took."""
    return (
        f"emulator: {carried.bits / 8e6:.0f} MB, {carried.cpu_s:.1f} s CPU, "
        f"{1e8 * carried.cpu_s / max(carried.bits, 1.0):.2f} % of a core per Mbit/s"
    )
