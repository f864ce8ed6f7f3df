"""Pictures of a run: its curves, and its tree with who has what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from clients.resident import label_counts
from hffm_flower.config import RunConfig
from hffm_flower.report import Score, accuracy
from hffm_flower.result import means, task_facts
from hffm_flower.runfiles import RunFiles
from hffm_flower.session.pictures import save_picture
from hffm_flower.session.plan import Plan
from hffm_flower.session.preflight import check

FEW = 5
"""Lines whose names have room among them; more are named beside the axes."""
TIER_COLOURS: Mapping[str, str] = {"cloud": "#1f4e79", "edge": "#d1762b", "device": "#5b8c5a"}


def draw_curves(files: RunFiles, plan: Plan | None = None) -> Path:
    """Draw ``curves.png``: accuracy by tier, by task, and the training loss over edge rounds."""
    reports = files.rounds()
    config = RunConfig.from_flwr({**_flat(files), "paths.out": "", "paths.state": ""})
    plan = plan or check(config, fits=False)
    tasks = task_facts(config.data.tasks, plan.profiles)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
    for tier, colour in TIER_COLOURS.items():
        points = [(r.t, means(r, tasks)[tier]) for r in reports if tier in means(r, tasks)]
        if points:
            left.plot(*zip(*points, strict=True), "o-", ms=4, color=colour, label=f"{tier} model")
    chance = [f.chance for f in tasks.values() if f.classes]
    if chance:
        left.axhline(float(np.mean(chance)), color="0.6", ls=":", label="chance")
    left.set(title="Mean accuracy, IID test", xlabel="edge round t", ylabel="accuracy", ylim=(0, 1))
    tier = next((t for t in TIER_COLOURS if any(t in r.scores for r in reports)), "cloud")
    for task, facts in tasks.items():
        points = [
            (r.t, accuracy(r.scores[tier]["iid"].get(task, Score()), facts))
            for r in reports if "iid" in r.scores.get(tier, {})
        ]  # fmt: skip
        if points:
            label = task if facts.hit == "accuracy" else f"{task} ({facts.hit})"
            middle.plot(*zip(*points, strict=True), "o-", ms=4, label=label)
    middle.set(title=f"By task, {tier} model", xlabel="edge round t", ylim=(0, 1.02))
    right.plot([r.t for r in reports], [r.loss_sum / max(1, r.trained) for r in reports], "o-",
               ms=4, color="#444444")  # fmt: skip
    right.set(title="Training loss on devices", xlabel="edge round t", ylim=(0, None))
    for axes in (left, middle, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in (left, middle):
        if found := len(axes.get_legend_handles_labels()[0]):
            beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
            place = {"loc": "lower right"} if found <= FEW else beside
            axes.legend(fontsize=8, framealpha=0.85, edgecolor="none", **place)
    figure.suptitle(
        f"{config.method}: {config.tree.devices} devices, {len(plan.groups)} clusters, "
        f"{config.model.backbone}, seed {config.seed}", fontsize=10,
    )  # fmt: skip
    return save_picture(figure, files.root / "curves.png")


def draw_data(config: RunConfig, plan: Plan, path: Path) -> Path:
    """Draw the tree, and under each device what it holds: modalities, labels per task."""
    tasks, devices = config.data.tasks, config.tree.devices
    figure, rows = plt.subplots(
        2 + len(tasks), 1, sharex=True, layout="constrained",
        figsize=(max(7.0, 0.3 * devices + 2), 3.4 + 1.25 * len(tasks)),
        gridspec_kw={"height_ratios": [1.6, 0.7, *[1.0] * len(tasks)]},
    )  # fmt: skip
    _draw_tree(rows[0], config, plan)
    modalities = sorted({m for p in plan.profiles for m in p.modalities})
    for y, modality in enumerate(modalities):
        has = [p.index for p in plan.profiles if modality in p.modalities]
        rows[1].scatter(has, [y] * len(has), marker="s", s=28, color="#1f4e79")
    rows[1].set(yticks=range(len(modalities)), yticklabels=modalities,
                ylim=(-0.6, len(modalities) - 0.4))  # fmt: skip
    for axes, task in zip(rows[2:], tasks, strict=True):
        counts = label_counts(config, task)
        bottom = np.zeros(devices)
        for label, row in enumerate(counts.T):
            colour = plt.get_cmap("tab10")(label % 10)
            axes.bar(range(devices), row, bottom=bottom, width=0.85, color=colour, linewidth=0)
            bottom += row
        axes.set_ylabel(task, rotation=0, ha="right", va="center")
        axes.grid(axis="y", alpha=0.25)
    rows[-1].set_xlabel("device (bars: training examples, coloured by answer)")
    for axes in rows:
        axes.spines[["top", "right"]].set_visible(False)
    return save_picture(figure, path)


def _draw_tree(axes: Any, config: RunConfig, plan: Plan) -> None:
    groups = plan.groups
    middle = (config.tree.devices - 1) / 2
    flat = len(groups) == 1
    for index, group in enumerate(groups):
        centre = float(np.mean(group))
        top = (middle, 2.0) if flat else (centre, 1.0)
        if not flat:
            axes.plot([middle, centre], [2, 1], color="0.7", lw=1, zorder=1)
            axes.scatter(centre, 1, s=150, marker="s", color="#d1762b", zorder=2)
            axes.text(centre, 1, str(index), ha="center", va="center", fontsize=7, color="w")
        for device in group:
            idle = plan.profiles[device].idle
            axes.plot([top[0], device], [top[1], 0], color="0.85", lw=0.8, zorder=1)
            axes.scatter(device, 0, s=45, zorder=2, edgecolor="#5b8c5a",
                         color="w" if idle else "#5b8c5a")  # fmt: skip
    axes.scatter(middle, 2, s=260, marker="D", color="#1f4e79", zorder=2)
    axes.set(
        ylim=(-0.4, 2.5),
        yticks=[0, 1, 2],
        yticklabels=["devices", "" if flat else "edges", "cloud"],
    )
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.legend(
        handles=[
            Line2D([], [], marker="o", ls="", color="#5b8c5a", markerfacecolor=fill, label=label)
            for fill, label in (("#5b8c5a", "trains"), ("w", "idle: nothing to train"))
        ],
        fontsize=8, frameon=False, loc="upper right",
    )  # fmt: skip


def _flat(files: RunFiles) -> Mapping[str, object]:
    flat = files.result()["config"]
    assert isinstance(flat, Mapping)
    return flat
