"""The picture of a testbed run: measured over modelled time, message by message."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from hffm_flower.testbed.measure import Timed

CLOSE: Final = 0.2
"""Half the width of the band in the picture: measured within 20 % of modelled."""
KINDS: Final = (
    ("between devices", "#1f4e79", lambda m: m.comparable),
    ("between devices, waited for the receiver", "#9fb8cf", lambda m: not m.flower),
    ("over Flower", "#d1762b", lambda m: True),
)
"""What is told apart, each with its colour; the first that fits."""


def draw_times(messages: Sequence[Timed], path: Path, *, title: str) -> Path:
    """Draw measured over modelled seconds, both logarithmic."""
    figure, axes = plt.subplots(figsize=(6.2, 5.2), layout="constrained")
    left = list(messages)
    for label, colour, fits in KINDS:
        found = [m for m in left if fits(m)]
        left = [m for m in left if not fits(m)]
        if found:
            axes.plot([m.modelled_s for m in found], [m.measured_s for m in found], "o", ms=5,
                      color=colour, alpha=0.8, label=f"{label} ({len(found)})")  # fmt: skip
    times = [s for m in messages for s in (m.modelled_s, m.measured_s) if s > 0]
    ends = (min(times) / 1.5, max(times) * 1.5) if times else (0.1, 10.0)
    axes.plot(ends, ends, color="0.4", lw=1)
    axes.fill_between(ends, [(1 - CLOSE) * e for e in ends], [(1 + CLOSE) * e for e in ends],
                      color="0.85", zorder=0, label="within 20 %")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, title=title,
             xlabel="radio model [s]", ylabel="measured [s]")  # fmt: skip
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="upper left", framealpha=0.85, edgecolor="none")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
