"""What the picture of a topology shows: every link, head and branch of a relay tree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from hffm_flower.placement import Site, place
from hffm_flower.session import topology_plot
from hffm_flower.wireless.radio import Radio
from hffm_flower.wireless.scene import survey


@pytest.mark.parametrize("links", ["tree", "radius"])
def test_all_is_drawn_where_it_is(
    links: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figures: list[Figure] = []

    def keep(figure: Figure, path: Path) -> Path:
        figures.append(figure)
        return path

    monkeypatch.setattr(topology_plot, "save_picture", keep)
    layout = place("clustered", Site(devices=12, edges=3), 1)
    scene = survey(layout, radio=Radio(), seed=1, links=links, reach=500.0)
    topology_plot.draw_topology(scene, "twelve", tmp_path / "a.png")
    axes = figures[0].axes[0]
    at_m, edges_m = scene.topology.positions_m, scene.topology.edge_positions_m

    def same(found: Any, wanted: Any) -> bool:
        return np.array_equal(np.sort(np.array(found), axis=0), np.sort(np.array(wanted), axis=0))

    up, d2d = (c for c in axes.collections if isinstance(c, LineCollection))
    assert same(up.get_segments(), [(at_m[d], edges_m[e])
                                    for d, e in enumerate(scene.topology.edge_of())])  # fmt: skip
    assert same(d2d.get_segments(), [(at_m[a], at_m[b]) for a, b in scene.topology.links])
    rates = np.array(d2d.get_array())
    assert (rates[:-1] != rates[1:]).any(), "coloured by rate"
    dots = [c.get_offsets() for c in axes.collections if not isinstance(c, LineCollection)]
    assert any(same(d, at_m[[h for h in scene.heads if h is not None]]) for d in dots)
    assert any(same(d, edges_m) for d in dots)
    notes = [t for t in axes.texts if isinstance(t, Annotation) and not t.get_text()]
    arrows = [(note.xy, note.xyann) for note in notes]
    branches = [branch for tree in scene.trees for branch in tree.parent.items()]
    assert same(arrows, [(at_m[parent], at_m[node]) for node, parent in branches])
    assert len(arrows) == 12 - 3
