"""The command's root: its groups, and how errors end it."""

from __future__ import annotations

import resource
import signal
import sys
from typing import Final, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from hffm_flower.cli import (
    certs,
    compare,
    data,
    doctor,
    evaluate,
    export,
    memory,
    network,
    node,
    roles,
    run,
    submit,
    testbed,
    topology,
    up,
)
from hffm_flower.errors import AssetError, ConfigError, HffmError, Interrupted
from hffm_flower.version import __version__

app = typer.Typer(
    name="hffm",
    help="Hierarchical federated foundation models on Flower.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run")(run.run_command)
app.command("compare")(compare.compare_command)
app.command("eval")(evaluate.eval_command)
app.command("export")(export.export_command)
app.command("topology")(topology.topology_command)
app.command("plan-memory")(memory.memory_command)
app.command("network")(network.network_command)
app.command("node")(node.node_command)
app.command("up")(up.up_command)
app.command("testbed")(testbed.bed_command)
app.command("cloud")(roles.cloud_command)
app.command("edge")(roles.edge_command)
app.command("device")(roles.device_command)
app.command("submit")(submit.submit_command)
app.command("status")(submit.status_command)
app.command("stop")(submit.stop_command)
app.command("doctor")(doctor.doctor_command)
app.add_typer(data.data, name="data")
app.add_typer(certs.certs, name="certs")

BAD_INPUT = 2
FAILED = 1
INTERRUPTED = 130
ENOUGH_FILES: Final = 4096
"""A tree's SuperLinks keep a connection or two for each node."""
LEAST_FILES: Final = 256
"""With fewer open files programs wait for each other without a word."""


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    """Hierarchical federated foundation models on Flower."""
    if version:
        print(f"hffm-flower {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: bad input ends with code 2, a failed run with 1, Ctrl-C with 130."""
    errors = Console(stderr=True, highlight=False)
    ends = [signal.SIGINT, signal.SIGTERM]  # SIGINT too: a shell's background job ignores it
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # else nohup wants it to go on
        ends.append(signal.SIGHUP)
    before = {number: signal.signal(number, _interrupt) for number in ends}
    try:
        _allow_files()
        app()
    except (ConfigError, AssetError) as error:
        errors.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(BAD_INPUT)
    except Interrupted as error:
        errors.print(f"[yellow]interrupted:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(INTERRUPTED)
    except HffmError as error:
        errors.print(f"[red]failed:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(FAILED)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _allow_files() -> None:
    """Let this program and those that it starts have enough files and connections open.

    Raises:
        ConfigError: The system does not let them.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < LEAST_FILES:
        raise ConfigError(
            f"ulimit -n: this shell lets a program have {hard} files open; allowed: from "
            f"{LEAST_FILES}"
        )


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
