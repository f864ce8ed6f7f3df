"""Pictures of a comparison: accuracy over rounds, seconds and joules; bars of the costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from hffm_flower.runfiles import RunFiles
from hffm_flower.session.pictures import save_picture

COLOURS: Mapping[str, str] = {
    "local": "#8c8c8c", "star": "#b5342a", "edge-only": "#d1762b", "central": "#222222",
}  # fmt: skip
OTHERS = (
    "#1f4e79", "#2a9d8f", "#6a4c93", "#5b8c5a", "#e07a9b", "#c9a227", "#56a3d9", "#7a4b2a",
    "#9c2f6f", "#8fbc3f",
)  # fmt: skip


def draw_comparison(
    runs: Sequence[tuple[str, RunFiles]], rows: Sequence[Mapping[str, Any]], root: Path
) -> None:
    """Draw ``accuracy.png`` and ``costs.png``; lines are means over seeds."""
    stems = list(dict.fromkeys(name.partition("+")[0] for name, _ in runs))
    others = [s for s in stems if s not in COLOURS]
    colour = {**COLOURS, **{s: OTHERS[i % len(OTHERS)] for i, s in enumerate(others)}}
    _draw_accuracy(runs, colour, root / "accuracy.png")
    _draw_costs(rows, colour, root / "costs.png")


def _draw_accuracy(
    runs: Sequence[tuple[str, RunFiles]], colour: Mapping[str, str], path: Path
) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.6), sharey=True, layout="constrained")
    labels = ("edge round t", "radio model: seconds so far", "radio model: joules so far")
    for name in dict.fromkeys(name for name, _ in runs):
        curves = [_curve(files) for other, files in runs if other == name]
        style = {"color": colour[name.partition("+")[0]], "ls": "--" if "+" in name else "-"}
        mean = [[sum(v) / len(v) for v in zip(*points, strict=True)]
                for points in zip(*curves, strict=True)]  # fmt: skip
        rounds, seconds, joules, accuracy = mean
        for place, x in enumerate((rounds, seconds, joules)):
            if place == 0 or (name != "local" and 0 < max(x) < math.inf):
                axes[place].plot(x, accuracy, label=name, lw=1.8, marker=".", ms=5, **style)
    for each, label in zip(axes, labels, strict=True):
        each.set(xlabel=label)
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    for each in (a for a in axes[1:] if a.lines):
        each.set_xscale("log")
        each.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        each.xaxis.set_major_formatter(ScalarFormatter())
        each.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set(ylabel="mean accuracy, IID test")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    save_picture(figure, path)


def _curve(files: RunFiles) -> tuple[list[float], ...]:
    """Rounds, seconds, joules and accuracy wherever the method's highest tier was evaluated."""
    result = files.result()
    rounds, summary = result["rounds"], result["summary"]
    assert isinstance(rounds, list)
    assert isinstance(summary, Mapping)
    seconds, joules = (
        list(accumulate(math.inf if r[cost] is None else r[cost] for r in rounds))
        for cost in ("latency_s", "energy_j")
    )
    points = [
        (float(r["t"]), s, j, float(r["mean_global"][summary["tier"]]))
        for r, s, j in zip(rounds, seconds, joules, strict=True)
        if summary["tier"] in r["mean_global"]
    ]
    return tuple(list(column) for column in zip(*points, strict=True))


def _draw_costs(rows: Sequence[Mapping[str, Any]], colour: Mapping[str, str], path: Path) -> None:
    priced = [r for r in rows if r["latency_s"] is not None and r["energy_j"] is not None]
    figure, axes = plt.subplots(1, 2, figsize=(12, 0.42 * len(priced) + 1.6), layout="constrained")
    names = [str(r["method"]) for r in priced]
    titles = ("latency per edge round [s]", "energy per edge round [J]")
    for each, figure_name, title in zip(axes, ("latency_s", "energy_j"), titles, strict=True):
        values = [float(r[figure_name]) for r in priced]
        spread = [float(r[f"{figure_name}_spread"] or 0.0) for r in priced]
        bars = each.barh(
            names, values, xerr=spread if any(spread) else None,
            color=[colour[n.partition("+")[0]] for n in names], height=0.7,
        )  # fmt: skip
        for bar, name in zip(bars, names, strict=True):
            bar.set_hatch("//" if "+" in name else "")
            bar.set_edgecolor("white")
        each.bar_label(bars, labels=[f" {v:.3g}" for v in values], fontsize=8)
        each.set(xlabel=title)
        each.margins(x=0.12)
        each.invert_yaxis()
        each.spines[["top", "right"]].set_visible(False)
    save_picture(figure, path)
