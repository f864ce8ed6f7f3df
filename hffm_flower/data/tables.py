"""CSV files with a header, as a device's own folders have them."""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from hffm_flower.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file in memory; names and cells without white space around them."""

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, str]]


def parse(path: Path) -> Table:
    """Read a CSV file; a line that is too short has empty cells.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no UTF-8 text, or no CSV file with a header.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            lines = list(csv.reader(file))
        except csv.Error as error:
            raise ValueError(str(error)) from error
    if not lines:
        raise ValueError("it is empty")
    columns = tuple(cell.strip() for cell in lines[0])
    rows = [
        dict.fromkeys(columns, "") | {c: v.strip() for c, v in zip(columns, line, strict=False)}
        for line in lines[1:]
        if any(cell.strip() for cell in line)
    ]
    return Table(path, columns, rows)


def read_table(path: Path, key: str) -> Table:
    """Read the CSV file that the setting ``key`` names.

    Raises:
        ConfigError: It is not there, or is no CSV file.
    """
    try:
        return parse(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{str(path)!r} cannot be read: {why}", key=key) from error


def need_columns(table: Table, columns: Collection[str], key: str) -> None:
    """Refuse a table that lacks one of ``columns``.

    Raises:
        ConfigError: It does; the message says which it has.
    """
    if lost := [c for c in columns if c not in table.columns]:
        raise ConfigError(
            f"{str(table.path)!r} has no column {', '.join(lost)}; "
            f"it has: {', '.join(table.columns)}",
            key=key,
        )
