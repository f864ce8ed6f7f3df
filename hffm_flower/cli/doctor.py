"""``hffm doctor``: what this machine has, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hffm_flower.assets import ASSETS, is_installed, verify_assets
from hffm_flower.config import RunConfig

NEEDED = {
    "base": ("flwr", "numpy", "pydantic", "safetensors", "typer", "rich"),
    "device": ("torch", "transformers", "pillow"),
    "sim": ("ray", "matplotlib", "psutil"),
}
EXTRAS = {"server": ("base",), "device": ("base", "device"), "sim": ("base", "device", "sim")}
NEXT = {
    "server": "[bold]hffm cloud[/] or [bold]edge[/] ROLE.toml",
    "device": "[bold]hffm device[/] ROLE.toml",
    "sim": "[bold]hffm run --smoke[/] takes under a minute",
}
FREE_BYTES = 2 * 2**30


def doctor_command(
    role: Annotated[
        Literal["server", "device", "sim"],
        typer.Option("--for", help="A cloud or an edge; a device; all, for hffm run."),
    ] = "sim",
) -> None:
    """Say what this machine has, what is missing, and how to mend it."""
    console = Console()
    table = Table(title="hffm doctor")
    table.add_column("what")
    table.add_column("state")
    table.add_column("detail", overflow="fold")
    bad = 0

    def row(what: str, good: bool, detail: str) -> None:
        nonlocal bad
        bad += not good
        table.add_row(what, "[green]ok[/]" if good else "[red]missing[/]", escape(detail))

    row("python", True, f"{platform.python_version()}, {os.cpu_count()} CPUs")
    extras = EXTRAS[role]
    for extra in extras:
        for package in NEEDED[extra]:
            try:
                row(package, True, version(package))
            except PackageNotFoundError:
                suffix = "" if extra == "base" else f"[{extra}]"
                row(package, False, f"pip install 'hffm-flower{suffix}' -c constraints.txt")
    if "device" in extras:
        row("accelerator", *_accelerator())
    for name, good, detail in verify_assets() if "device" in extras else ():
        if good or is_installed(name) or ASSETS[name].extra in NEEDED:
            row(f"asset {name}", good, detail)
        else:
            table.add_row(f"asset {name}", "[yellow]optional[/]", escape(detail))
    cache = RunConfig().cache_dir()
    row("cache folder", *_cache(cache))
    console.print(table)
    if bad:
        console.print(f"[red]{bad} missing[/]")
        raise typer.Exit(1)
    console.print(f"all that is needed is there: {NEXT[role]}")


def _accelerator() -> tuple[bool, str]:
    try:
        from hffm_flower.accelerator import choose_device
    except ImportError:
        return False, "torch is not installed"
    return True, f"{choose_device('auto')} (train.device = auto)"


def _cache(folder: Path) -> tuple[bool, str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return False, f"{folder}: {error.strerror}; set HFFM_CACHE or paths.cache"
    free = shutil.disk_usage(folder).free
    return free >= FREE_BYTES, f"{folder}, {free / 2**30:.0f} GiB free"
