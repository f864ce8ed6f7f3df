"""The page docs/extending.md works: its code is run, registered and trained as a federation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from clients import resident, shares
from clients.client_app import app
from hffm_flower.config import RunConfig
from hffm_flower.data import DATASETS, TASKS
from hffm_flower.models.encoders import ENCODERS
from hffm_flower.models.heads import HEADS
from hffm_flower.runfiles import RunFiles
from hffm_flower.session.preflight import check
from hffm_flower.tasks import TaskSpec
from strategies.federation import federate
from tests.support.fake_grid import FakeGrid

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
FENCE = re.compile(r"^```python(?: register=(?P<dict>\w+))?\n(?P<code>.*?)^```$", re.M | re.S)
REGISTRIES: dict[str, Any] = {
    "ENCODERS": ENCODERS, "HEADS": HEADS, "DATASETS": DATASETS, "TASKS": TASKS,
}  # fmt: skip
MOST_LINES = 40


def blocks() -> list[tuple[str | None, str]]:
    """Code blocks of the page, each with the dict that it is an entry of, if it is one."""
    return [(m["dict"], m["code"]) for m in FENCE.finditer(PAGE.read_text(encoding="utf-8"))]


@pytest.fixture
def extended(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Add the page's entries to the dicts; gives the dict and the name of each."""
    scope: dict[str, Any] = {"TaskSpec": TaskSpec, "__name__": "extending"}
    added = {}
    for registry, code in blocks():
        if registry is None:
            exec(compile(code, str(PAGE), "exec", dont_inherit=True), scope)
        else:
            for name, value in eval(f"{{{code}}}", scope).items():
                assert name not in REGISTRIES[registry]
                monkeypatch.setitem(REGISTRIES[registry], name, value)
                added[registry] = name
    caches = (shares.drawn_partition, shares.opened, resident._encoder, resident._frozen)
    for kept in caches:
        kept.cache_clear()
    yield added
    for kept in caches:
        kept.cache_clear()
    resident._examples.clear()


def test_blocks_are_short_and_fill_every_dict() -> None:
    assert [d for d, _ in blocks() if d] == ["ENCODERS", "HEADS", "DATASETS", "TASKS"]
    assert max(code.count("\n") for _, code in blocks()) < MOST_LINES


def test_page_names_files_that_exist() -> None:
    new = {"hffm_flower/models/encoders/spectrum.py", "hffm_flower/data/waves.py"}
    named = set(re.findall(r"`((?:hffm_flower|tests)/[\w/]+\.py)`", PAGE.read_text("utf-8")))
    missing = {name for name in named if not (PAGE.parents[1] / name).exists()}
    assert missing == new


def test_a_federation_learns_the_new_task(extended: dict[str, str], tmp_path: Path) -> None:
    task, encoder = extended["TASKS"], extended["ENCODERS"]
    config = RunConfig().with_values(
        rounds=2, tree__devices=4, tree__edges=2, tree__period=1,
        data__tasks=task, data__alpha=100.0, data__full_modality_share=1.0,
        data__train_per_answer=64, data__test_per_answer=40,
        model__backbone="small", model__encoders=f"sensor={encoder}", train__device="cpu",
        paths__cache=str(tmp_path / "cache"),
    )  # fmt: skip
    assert check(config).idle == ()
    files = RunFiles.create(tmp_path / "out")
    federate(FakeGrid(app, 4, config.to_flwr()), config, files)
    modules = files.cloud()
    assert {str(key) for key in modules} == {
        "projector/spectrum", "prompt/cls", "backbone/block.0", "backbone/block.1", f"head/{task}",
    }  # fmt: skip
    assert all(np.isfinite(a).all() for tensors in modules.values() for a in tensors.values())
    losses = [report.loss_sum / report.trained for report in files.rounds()]
    assert losses[1] < losses[0]
    result = files.result()
    assert result["status"] == "finished"
    summary = cast("dict[str, Any]", result["summary"])
    assert summary["per_task"][task] > 0.9
