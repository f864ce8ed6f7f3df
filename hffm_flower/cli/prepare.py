"""``hffm data prepare``: a task from a public data set or from a user's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from hffm_flower.config import located
from hffm_flower.errors import ConfigError

KINDS = "gqa, artvqa, vizwiz, image-csv, series-csv or hf-datasets; see docs/datasets.md."


def prepare_command(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=KINDS)],
    root: Annotated[Path, typer.Option(help="The folder; it is only read.")],
    name: Annotated[str, typer.Option(help="Of the task; default: gqa10 and so on.")] = "",
    answers: Annotated[
        str, typer.Option(help="How many, the commonest; or which: yes,no,red.")
    ] = "10",
    train_per_answer: Annotated[int, typer.Option(help="Training examples, at most.")] = 100,
    test_per_answer: Annotated[int, typer.Option(help="Test examples, at most.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the examples that are drawn.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder of prepared tasks; default: HFFM_DATA.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put it in the place of an old one.")
    ] = False,
    csv: Annotated[
        str | None, typer.Option(help="Table of image-csv or series-csv.", show_default=False)
    ] = None,
    window: Annotated[int | None, typer.Option(help="Samples of a window.")] = None,
    hop: Annotated[int | None, typer.Option(help="Samples from window to window.")] = None,
    channels: Annotated[
        str | None, typer.Option(help="Columns of a recording: ax,ay,az.", show_default=False)
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Column of hf-datasets.", show_default=False)
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Column of hf-datasets.", show_default=False)
    ] = None,
    answer: Annotated[
        str | None, typer.Option(help="Column of hf-datasets.", show_default=False)
    ] = None,
    test_share: Annotated[
        float | None, typer.Option(help="For testing, where the folder has no split.")
    ] = None,
) -> None:
    """Make a task of the data set in a folder, for data.tasks of a run."""
    given: dict[str, Any] = {
        "csv": csv, "window": window, "hop": hop, "image": image, "text": text, "answer": answer,
        "channels": None if channels is None else _words(channels), "test-share": test_share,
    }  # fmt: skip
    console = Console()
    try:
        from hffm_flower.data.prepare import Wanted, prepare

        wanted = Wanted(
            int(answers) if answers.removeprefix("-").isdecimal() else _words(answers),
            {"train": train_per_answer, "test": test_per_answer},
            seed,
        )
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("reading annotations", total=None)
            made = prepare(
                kind, root, name=name, wanted=wanted, out=out, replace=replace,
                settings={k: v for k, v in given.items() if v is not None},
                progress=lambda total: bar.update(
                    task, description="checking examples", total=total, advance=1
                ),
            )  # fmt: skip
    except ConfigError as error:
        option = "KIND" if error.key == "kind" else f"--{error.key}"
        raise located(ConfigError(str(error), key=option), {}) from error
    table = Table(title=f"task {made.name}, seed {seed}")
    for column in ("answer", "training", "test"):
        table.add_column(column, justify="left" if column == "answer" else "right")
    for word, counts in made.counts.items():
        table.add_row(escape(word), str(counts["train"]), str(counts["test"]))
    console.print(table)
    for line in [*made.unusable.lines(), *made.skipped.lines()]:
        console.print(f"left out {line}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"in {made.folder}", highlight=False, markup=False, soft_wrap=True)
    if out is not None:
        console.print(
            f"runs find it with HFFM_DATA={made.folder.parent}", markup=False, soft_wrap=True
        )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
