"""``hffm certs``: keys and certificates for a deployment on trial."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from hffm_flower.pki import Party

certs = typer.Typer(no_args_is_help=True, help="Make and show certificates for development.")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the certificates.")]
Server = Annotated[
    list[str] | None,
    typer.Option("--server", metavar="NAME[=SAN,...]", help="A server, e.g. cloud=10.0.0.1."),
]
Edge = Annotated[
    list[str] | None,
    typer.Option("--edge", metavar="NAME[=SAN,...]", help="A server that is a node upstream."),
]
Device = Annotated[
    list[str] | None,
    typer.Option("--device", metavar="NAME[=SAN,...]", help="A node that has peers."),
]
Devices = Annotated[int, typer.Option(min=0, help="Devices device-0..device-(N-1), without SANs.")]
Days = Annotated[int, typer.Option(help="How long certificates are valid.")]
Force = Annotated[bool, typer.Option("--force", help="Make anew what is already there.")]


@certs.command("make")
def make_command(
    folder: Folder,
    server: Server = None,
    edge: Edge = None,
    device: Device = None,
    devices: Devices = 0,
    days: Days = 365,
    force: Force = False,
) -> None:
    """Make an authority and one folder for each machine; names and IPs are its SANs."""
    from hffm_flower.pki_folder import create

    create(folder, _parties(server, edge, device, devices), days=days, force=force)
    _show(folder)


@certs.command("add")
def add_command(
    folder: Folder,
    server: Server = None,
    edge: Edge = None,
    device: Device = None,
    devices: Devices = 0,
    days: Days = 365,
    force: Force = False,
) -> None:
    """Add machines under the authority that is there; --force renews (name all SANs again)."""
    from hffm_flower.pki_folder import add

    add(folder, _parties(server, edge, device, devices), days=days, force=force)
    _show(folder)


@certs.command("show")
def show_command(folder: Folder) -> None:
    """List subjects, SANs and expiry; ends with code 1 if one must not be used."""
    if not _show(folder):
        raise typer.Exit(1)


def _show(folder: Path) -> bool:
    """Print the table; whether all is well."""
    from hffm_flower.pki_inspect import inspect

    console = Console()
    table = Table(title=escape(str(folder)))
    for column in ("folder", "subject", "names and IPs", "expires", "days", "state"):
        table.add_column(column, overflow="fold")
    found = inspect(folder)
    for cert in found:
        good = "ok, SuperNode key" if cert.node_key else "ok"
        state = f"[red]{', '.join(cert.faults)}[/]" if cert.faults else good
        table.add_row(
            cert.name, escape(cert.subject), " ".join(cert.names) or "-",
            f"{cert.until:%Y-%m-%d %H:%M} UTC",
            f"[yellow]{cert.days:.1f}[/]" if cert.soon else f"{cert.days:.0f}", state,
        )  # fmt: skip
    console.print(table)
    for cert in found:
        if cert.faults:
            console.print(f"[red]warning:[/] {cert.name}: {', '.join(cert.faults)}")
        elif cert.soon:
            console.print(f"[yellow]warning:[/] {cert.name} expires in {cert.days:.1f} days")
    return not any(cert.faults for cert in found)


def _parties(
    server: list[str] | None, edge: list[str] | None, device: list[str] | None, devices: int
) -> list[Party]:
    from hffm_flower.errors import ConfigError
    from hffm_flower.pki import Party, Role

    numbered = [f"device-{k}" for k in range(devices)]
    given = (
        (Role.SERVER, server or []), (Role.EDGE, edge or []),
        (Role.DEVICE, [*numbered, *(device or [])]),
    )  # fmt: skip
    parties = [Party.parse(text, role) for role, texts in given for text in texts]
    if not parties:
        raise ConfigError("name at least one machine: --server, --edge, --device or --devices")
    return parties
