"""``hffm cloud``, ``edge``, ``device``: one role of a tree on this machine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from hffm_flower.config import RunConfig
    from hffm_flower.session.role import Role

RoleFile = Annotated[
    Path, typer.Argument(metavar="ROLE.toml", help="What this machine is; see docs/deploying.md.")
]
ShowOnly = Annotated[
    bool, typer.Option("--show", help="Only print Flower's own commands for the same.")
]


def cloud_command(role: RoleFile, show: ShowOnly = False) -> None:
    """Be a tree's cloud: SuperLink and guard, until Ctrl-C or SIGTERM."""
    from hffm_flower.session.roles import CloudRole
    from hffm_flower.session.serving import serve_cloud

    chosen = CloudRole.load(role)
    _announce(chosen)
    if not show:
        _stay(lambda: serve_cloud(chosen))


def edge_command(role: RoleFile, show: ShowOnly = False) -> None:
    """Be an edge: SuperLink, guard, node of the cloud, ServerApp, until Ctrl-C or SIGTERM."""
    from hffm_flower.config import RunConfig
    from hffm_flower.session.roles import EdgeRole
    from hffm_flower.session.serving import serve_edge

    chosen = EdgeRole.load(role)
    config = RunConfig.load(chosen.config or None)
    _announce(chosen, config)
    if not show:
        _stay(lambda: serve_edge(chosen, config))


def device_command(role: RoleFile, show: ShowOnly = False) -> None:
    """Be a device: a node of its edge, until Ctrl-C or SIGTERM."""
    from hffm_flower.session.roles import DeviceRole
    from hffm_flower.session.serving import serve_device

    chosen = DeviceRole.load(role)
    _announce(chosen)
    if not show:
        _stay(lambda: serve_device(chosen))


def _announce(role: Role, config: RunConfig | None = None) -> None:
    from hffm_flower.session.roles import LinkRole
    from hffm_flower.session.serving import commands

    console = Console(highlight=False)
    if isinstance(role, LinkRole):
        console.print(f"nodes reach [bold]{role.listen}[/], /v1/fleet only", soft_wrap=True)
    if role.insecure:
        console.print("[yellow]no TLS: everyone on the way reads and writes[/]")
    console.print("Flower's own commands for the same:")
    for command in commands(role, config):
        console.print(f"  {escape(command)}", soft_wrap=True)


def _stay(serve: Callable[[], NoReturn]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        serve()
    except KeyboardInterrupt:  # the usual end: everything that was started has gone
        Console(highlight=False).print("stopped")
