"""Picture of a scene: servers, clusters, links by rate, heads and their relay trees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D

from hffm_flower.session.pictures import save_picture
from hffm_flower.wireless.scene import Scene

EDGE, HEAD = "#d1762b", "#1f4e79"


def draw_topology(scene: Scene, title: str, path: Path) -> Path:
    """Draw ``scene`` from above, as PNG."""
    figure, axes = plt.subplots(figsize=(9.5, 8), layout="constrained")
    at_m, edges_m = scene.topology.positions_m, scene.topology.edge_positions_m
    ends = [(at_m[d], edges_m[e]) for d, e in enumerate(scene.topology.edge_of())]
    pairs = list(scene.topology.links)
    both = [min(scene.link_rate_bit_s[a, b], scene.link_rate_bit_s[b, a]) for a, b in pairs]
    rates = np.array([*scene.uplink_rate_bit_s, *both]) / 1e6
    shown = LogNorm(*_limits(rates[rates > 0]))
    devices = scene.topology.devices
    up = _lines(ends, rates[:devices], shown, width=1.1, style="dotted")
    axes.add_collection(up)
    axes.add_collection(
        _lines([(at_m[a], at_m[b]) for a, b in pairs], rates[devices:], shown, width=4.5)
    )
    for tree in scene.trees:
        for node, parent in tree.parent.items():
            axes.annotate(
                "", xy=at_m[parent], xytext=at_m[node], zorder=3,
                arrowprops={"arrowstyle": "-|>", "color": "0.2", "lw": 0.9, "shrinkB": 4},
            )  # fmt: skip
    colours = [plt.get_cmap("tab20")(e % 20) for e in scene.topology.edge_of()]
    axes.scatter(at_m[:, 0], at_m[:, 1], s=38, c=colours, edgecolor="0.3", linewidth=0.6, zorder=4)
    heads = [h for h in scene.heads if h is not None]
    axes.scatter(
        at_m[heads, 0], at_m[heads, 1], s=120, facecolor="none", edgecolor=HEAD, linewidth=1.8,
        zorder=5,
    )  # fmt: skip
    axes.scatter(edges_m[:, 0], edges_m[:, 1], s=110, marker="s", color=EDGE, zorder=5)
    for edge, point in enumerate(edges_m):
        axes.annotate(str(edge), point, ha="center", va="center", color="w", fontsize=7, zorder=6)
    figure.colorbar(up, ax=axes, label="rate [Mbit/s] (D2D: the slower direction)", shrink=0.8)
    axes.set(title=title, xlabel="x [m]", ylabel="y [m]", aspect="equal")
    axes.margins(0.04)
    figure.legend(handles=_legend(), fontsize=8, frameon=False, loc="outside lower left", ncols=3)
    return save_picture(figure, path)


def _limits(rates: Any) -> tuple[float, float]:
    low, high = (float(rates.min()), float(rates.max())) if len(rates) else (1.0, 1.0)
    return (low, high) if low < high else (low / 2, high * 2)


def _lines(
    ends: list[Any], rates: Any, norm: LogNorm, *, width: float, style: str = "solid"
) -> LineCollection:
    lines = LineCollection(
        ends, norm=norm, cmap="viridis", linewidth=width, linestyle=style, zorder=2
    )
    lines.set_array(np.maximum(rates, norm.vmin or 0.0))
    return lines


def _legend() -> list[Line2D]:
    return [
        Line2D([], [], marker="s", ls="", color=EDGE, label="edge server"),
        Line2D([], [], marker="o", ls="", color="0.6", label="device, coloured by cluster"),
        Line2D([], [], marker="o", ls="", markerfacecolor="none", color=HEAD, ms=10, label="head"),
        Line2D([], [], color="0.5", ls=":", label="uplink"),
        Line2D([], [], color="#35b779", lw=4.5, label="D2D link"),
        Line2D([], [], color="0.2", marker=">", lw=0.9, label="relay tree, towards the head"),
    ]
