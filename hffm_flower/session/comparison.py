"""``compare(...)``: methods, or variants of one, side by side in accuracy and costs."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError, HffmError, OutputError
from hffm_flower.ledger import LinkClass
from hffm_flower.modules import ModuleKind
from hffm_flower.result import versions
from hffm_flower.runfiles import LOG, RunFiles
from hffm_flower.session.comparison_plots import draw_comparison
from hffm_flower.session.entries import DEFAULT, Entry, entries
from hffm_flower.session.plan import Plan
from hffm_flower.session.preflight import check
from hffm_flower.session.run import finish, settled
from hffm_flower.session.variants import Variants, variant_entries
from hffm_flower.session.worker import Show, work

FIGURES = ("accuracy", "accuracy_cycle", "latency_s", "energy_j")
BYTES = {
    "bytes": tuple(map(str, LinkClass)),
    "header_bytes": tuple(map(str, LinkClass)),
    "kind_bytes": tuple(map(str, ModuleKind)),
}
UNPRICED = ("central",)
"""Methods whose cost the radio model has nothing to say about."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A finished comparison.

    Attributes:
        folder: Where the table, the pictures and every run's folder are.
        rows: One per method or variant, as in ``table.json``.
    """

    folder: Path
    rows: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """A run of the comparison, checked."""

    entry: Entry
    plan: Plan
    files: RunFiles


def compare(
    config: RunConfig | None = None,
    *,
    methods: Sequence[str] | None = None,
    variants: Variants | None = None,
    seeds: Iterable[int] = (1,),
    out: str | Path,
    show: Show | None = None,
) -> Comparison:
    """Train methods or variants on one federation and compare what they reach and cost.

    Args:
        config: Settings in common; default: all defaults. Its T is to be a multiple of every
            period.
        methods: Names such as ``star``, ``h-fedfm-e2`` or ``h-fedfm-e2+d2d``; default: the
            paper's.
        variants: In place of methods: name -> settings, such as ``{"model.adapter": "lora"}``,
            on top of ``config``.
        seeds: Each runs once with each.
        out: New folder for tables, pictures and every run's folder.
        show: Told of progress, for a display.

    Raises:
        ConfigError: A setting cannot work; nothing was started.
        HffmError: Some run ended early; the folder holds what was finished.
    """
    root = Path(out).expanduser()
    base = config or RunConfig()
    if variants is None:
        wanted = entries(base, DEFAULT if methods is None else methods, seeds)
    elif methods is None:
        wanted = variant_entries(base, variants, seeds)
    else:
        raise ConfigError("methods and variants exclude each other")
    planned = prepare(wanted, root)
    return execute(planned, root, show or (lambda event: None))


def prepare(wanted: Sequence[Entry], root: Path) -> list[Planned]:
    """Check every run, then take a folder for each: ``<root>/<name>/seed-<seed>``.

    Raises:
        ConfigError: A setting cannot work, or the folder is in use; nothing was started.
    """
    plans = [_checked(entry) for entry in wanted]
    take_folder(root)
    return [
        Planned(entry, plan, RunFiles.create(root / entry.name / f"seed-{entry.config.seed}"))
        for entry, plan in zip(wanted, plans, strict=True)
    ]


def _checked(entry: Entry) -> Plan:
    try:
        return check(entry.config)
    except ConfigError as error:
        raise entry.named(error) from error


def take_folder(root: Path) -> None:
    """Take a new or empty folder for a comparison; of two at the same time one gets it.

    Raises:
        OutputError: It holds something, or cannot be made.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise OutputError(f"{str(root)!r} is not empty; choose another folder", key="paths.out")
        (root / LOG).touch(exist_ok=False)
    except FileExistsError as error:
        raise OutputError(f"{str(root)!r} is in use, or no folder", key="paths.out") from error
    except (OSError, ValueError) as error:
        raise OutputError(f"{str(root)!r} is no usable folder: {error}", key="paths.out") from error


def execute(planned: Sequence[Planned], root: Path, show: Show) -> Comparison:
    """Work through all runs in one session; write tables and pictures of what has finished.

    Raises:
        HffmError: Some run ended early; the others are in the tables.
    """
    configs = [settled(p.entry.config, p.files) for p in planned]
    failure: BaseException | None = None
    try:
        work(configs, root, show)
    except (HffmError, KeyboardInterrupt) as error:
        failure = error
    done = []
    for run, config in zip(planned, configs, strict=True):
        if not run.files.rounds() and not run.files.has_result():
            shutil.rmtree(run.files.root, ignore_errors=True)  # it was never begun
            with contextlib.suppress(OSError):  # other seeds may be there
                run.files.root.parent.rmdir()
            continue
        ended = run.files.has_result() and run.files.result()["status"] == "finished"
        finish(config, run.plan, run.files, None if ended else failure)
        if ended:
            done.append(run)
    rows = table(done)
    if rows:
        write_tables(root, rows, [p.entry for p in planned])
        draw_comparison([(p.entry.name, p.files) for p in done], rows, root)
    if failure is not None:
        raise failure
    return Comparison(root, tuple(rows))


def table(done: Sequence[Planned]) -> list[dict[str, Any]]:
    """One row per method or variant, means over its seeds.

    Spread is the sample standard deviation; answers that were dropped are those of all seeds.
    """
    rows = []
    for name in dict.fromkeys(p.entry.name for p in done):
        runs = [p for p in done if p.entry.name == name]
        found = [_figures(p) for p in runs]
        row: dict[str, Any] = {"method": name}
        if runs[0].entry.variant is not None:
            row["settings"] = dict(runs[0].entry.variant)
        for figure in FIGURES:
            values = [f[figure] for f in found if f[figure] is not None]
            row[figure] = statistics.fmean(values) if values else None
            row[f"{figure}_spread"] = statistics.stdev(values) if len(values) > 1 else None
        row["dropped"] = sum(f["dropped"] for f in found)
        for each, names in BYTES.items():
            row[each] = {n: statistics.fmean(f[each][n] for f in found) for n in names}
        row["seeds"] = {str(p.entry.config.seed): f for p, f in zip(runs, found, strict=True)}
        rows.append(row)
    return rows


def _figures(run: Planned) -> dict[str, Any]:
    """Figures of one run; costs are per edge round."""
    summary = run.files.result()["summary"]
    assert isinstance(summary, Mapping)
    free = run.entry.config.method in UNPRICED
    rounds = len(run.files.rounds())
    return {
        "accuracy": summary["mean_global"],
        "accuracy_cycle": summary["mean_global_cycle"],
        "latency_s": None if free else summary["latency_s"],
        "energy_j": None if free else summary["energy_j"],
        "dropped": summary["dropped"],
        **{each: {k: v / rounds for k, v in summary[each].items()} for each in BYTES},
    }


def write_tables(root: Path, rows: Sequence[Mapping[str, Any]], runs: Sequence[Entry]) -> None:
    """Write ``table.json``, ``table.csv`` and ``table.tex``."""
    varied = {"seed", *(key for entry in runs for key in entry.variant or {})}
    if runs[0].variant is None:
        varied |= {"method", "tree.period", "d2d.plan"}
    flat = {
        key: value for key, value in runs[0].config.to_flwr().items()
        if key not in varied and not key.startswith("paths.")
    }  # fmt: skip
    whole = {"config": flat, "versions": versions(), "rows": list(rows)}
    _write(root / "table.json", json.dumps(whole, indent=2) + "\n")
    _write(root / "table.csv", _csv(rows))
    _write(root / "table.tex", _tex(rows))


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    numbers = [n for figure in FIGURES for n in (figure, f"{figure}_spread")]
    writer = csv.writer(text, lineterminator="\n")
    amounts = [(each, n) for each in ("bytes", "kind_bytes") for n in BYTES[each]]
    writer.writerow(["method", *numbers, "dropped", *(f"{name}_bytes" for _, name in amounts)])
    for row in rows:
        values = ["" if row[n] is None else row[n] for n in numbers]
        sent = [row[each][name] for each, name in amounts]
        writer.writerow([row["method"], *values, row["dropped"], *sent])
    return text.getvalue()


def _tex(rows: Sequence[Mapping[str, Any]]) -> str:
    """A tabular for the package booktabs."""
    lines = [
        r"% latency and energy per edge round; bytes of modules per edge round",
        r"\begin{tabular}{lrrrrrrrr}",
        r"\toprule",
        r"Method & Accuracy & Cycle & Latency [s] & Energy [J] & "
        r"Uplink [MB] & Downlink [MB] & D2D [MB] & Backhaul [MB] \\",
        r"\midrule",
    ]
    for row in rows:
        cells = [str(row["method"])]
        cells += [_tex_number(row, figure) for figure in FIGURES]
        cells += [f"{row['bytes'][link] / 1e6:.2f}" for link in LinkClass]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _tex_number(row: Mapping[str, Any], figure: str) -> str:
    digits = 3 if figure.startswith("accuracy") else 2
    if row[figure] is None:
        return "--"
    spread = row[f"{figure}_spread"]
    value = f"{row[figure]:.{digits}f}"
    return value if spread is None else rf"${value} \pm {spread:.{digits}f}$"


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
