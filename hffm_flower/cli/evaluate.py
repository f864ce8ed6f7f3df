"""``hffm eval``: compute a run's figures again from its saved models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from hffm_flower.errors import HffmError

TOLERANCE = 1e-9


def eval_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")],
) -> None:
    """Compute the figures of DIR/result.json again from the saved models, and compare."""
    console = Console()
    with console.status("evaluating the saved models"):
        from hffm_flower.session.saved import recompute

        again, saved = recompute(folder)
    table = Table(title=f"{folder}: {saved['tier']} model after edge round {saved['t']}")
    for column in ("figure", "result.json", "from the models"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    odd = []
    for name, old, new in _figures(saved, again):
        same = old == new or (old is not None and new is not None and abs(old - new) <= TOLERANCE)
        odd += [] if same else [name]
        shown = ["-" if v is None else f"{v:.4f}" for v in (old, new)]
        table.add_row(name, shown[0], shown[1] if same else f"[red]{shown[1]}[/]")
    console.print(table)
    if odd:
        raise HffmError(f"the saved models give other figures: {', '.join(odd)}")
    console.print("the saved models give the figures of result.json")


def _figures(
    saved: Mapping[str, object], again: Mapping[str, object]
) -> list[tuple[str, float | None, float | None]]:
    rows: list[tuple[str, float | None, float | None]] = []
    for name in ("mean_global", "mean_personal", "uncovered"):
        rows.append((name, _number(saved[name]), _number(again[name])))
    for group in ("per_task", "measures"):
        old, new = _values(saved.get(group)), _values(again.get(group))
        rows += [(f"{group} {k}", old.get(k), new.get(k)) for k in {**old, **new}]
    return rows


def _values(group: object) -> dict[str, float | None]:
    """Task -> figure, of a table of figures or of named measures."""
    assert isinstance(group, Mapping)
    return {k: _number(v["value"] if isinstance(v, Mapping) else v) for k, v in group.items()}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
