"""``hffm export``: LoRA of a finished run as adapters of peft."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape


def export_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")],
    node: Annotated[
        str, typer.Option(metavar="NODE", help="Whose modules: cloud, edge/N or device/N.")
    ] = "cloud",
    out: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="New or empty folder; default: DIR/peft/NODE."),
    ] = None,
) -> None:
    """Write the LoRA modules of the run in DIR as adapters that peft loads."""
    console = Console()
    target = out or folder / "peft" / node.replace("/", "-")
    with console.status("exporting"):
        from hffm_flower.session.export import export

        written = export(folder, target, node)
    for path in written:
        console.print(f"{escape(str(path))}: an adapter for peft", highlight=False)
    console.print(f"how to load: {escape(str(target / 'README.md'))}", highlight=False)
