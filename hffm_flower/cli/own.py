"""What ``hffm data --own`` shows: a device's own data, as a run would use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hffm_flower.config import RunConfig
from hffm_flower.data.own_task import OwnTask
from hffm_flower.tasks import TASKS

NAMES: Final[Mapping[str, str]] = {"box": "boxes", "caption": "captions"}
"""Head of a task without classes -> what its answers are called."""


def show_own(config: RunConfig, file: Path, console: Console) -> None:
    """Read the device's file and its folders, and print tasks, answers and what is left out.

    Raises:
        ConfigError: The device could not take part.
    """
    from clients.resident import open_own

    with console.status("reading the device's data"):
        own = open_own(config, file)
    table = Table(title=f"{escape(str(file))}, seed {config.seed}")
    for column in ("task", "inputs", "answer"):
        table.add_column(column, overflow="fold")
    for column in ("training", "test"):
        table.add_column(column, justify="right")
    for task, data in own.tasks.items():
        for position, (answer, counts) in enumerate(_by_answer(data)):
            first = (task, " ".join(data.inputs)) if position == 0 else ("", "")
            table.add_row(*first, answer, *map(str, counts))
        table.add_section()
    console.print(table)
    for task, data in own.tasks.items():
        for line in data.skipped.lines():
            console.print(f"{task}: left out {escape(line)}", highlight=False)


def _by_answer(data: OwnTask) -> list[tuple[str, tuple[int, int]]]:
    """Answer -> training and test examples; those of a task without classes have one line."""
    names = TASKS[data.task].answers or (NAMES[TASKS[data.task].head],)
    counts = [np.bincount(data.labels(s), minlength=len(names)) for s in ("train", "test")]
    return [(name, (int(counts[0][i]), int(counts[1][i]))) for i, name in enumerate(names)]
