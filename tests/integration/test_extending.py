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
from hffm_flower.d2d import PLANS
from hffm_flower.data import DATASETS, TASKS
from hffm_flower.errors import ModuleError
from hffm_flower.models.encoders import ENCODERS
from hffm_flower.models.heads import HEADS
from hffm_flower.modules import ModularUpdate, ModuleKey
from hffm_flower.runfiles import RunFiles
from hffm_flower.session.preflight import check
from hffm_flower.tasks import TaskSpec
from hffm_flower.wireless.channel import CHANNELS
from strategies.federate import federate
from strategies.rules import RULES
from tests.support.fake_grid import FakeGrid

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
FENCE = re.compile(r"^```python(?: register=(?P<dict>\w+))?\n(?P<code>.*?)^```$", re.M | re.S)
REGISTRIES: dict[str, Any] = {
    "ENCODERS": ENCODERS, "HEADS": HEADS, "DATASETS": DATASETS, "TASKS": TASKS,
    "RULES": RULES, "PLANS": PLANS, "CHANNELS": CHANNELS,
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
    assert [d for d, _ in blocks() if d] == list(REGISTRIES)
    assert max(code.count("\n") for _, code in blocks()) < MOST_LINES


def test_page_names_files_that_exist() -> None:
    new = {"hffm_flower/models/encoders/spectrum.py", "hffm_flower/data/waves.py"}
    named = set(
        re.findall(r"`((?:hffm_flower|strategies|tests)/[\w/]+\.py)`", PAGE.read_text("utf-8"))
    )
    missing = {name for name in named if not (PAGE.parents[1] / name).exists()}
    assert missing == new


def settings(added: dict[str, str], root: Path, **changes: object) -> RunConfig:
    base: dict[str, object] = {
        "rounds": 2, "tree__devices": 4, "tree__edges": 2, "tree__period": 1,
        "data__tasks": added["TASKS"], "data__alpha": 100.0, "data__full_modality_share": 1.0,
        "data__train_per_answer": 64, "data__test_per_answer": 40, "model__backbone": "small",
        "model__encoders": f"sensor={added['ENCODERS']}", "train__device": "cpu",
        "radio__channel": added["CHANNELS"], "paths__cache": str(root / "cache"),
        "paths__state": str(root / "state"),
    }  # fmt: skip
    return RunConfig().with_values(**{**base, **changes})


def trained(config: RunConfig, folder: Path) -> RunFiles:
    assert check(config).idle == ()
    files = RunFiles.create(folder)
    federate(FakeGrid(app, config.tree.devices, config.to_flwr()), config, files)
    assert all(not report.dropped for report in files.rounds())
    return files


def test_a_federation_learns_the_new_task(extended: dict[str, str], tmp_path: Path) -> None:
    task = extended["TASKS"]
    config = settings(extended, tmp_path, server__rule=extended["RULES"])
    files = trained(config, tmp_path / "out")
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


def test_the_new_rule_keeps_what_outliers_cannot_move(extended: dict[str, str]) -> None:
    rule, key = RULES[extended["RULES"]](), ModuleKey.parse("head/a")
    for value in (1.0, 2.0, 3.0, 1e6):
        rule.add(ModularUpdate.of({key: {"w": np.full(2, value, np.float32)}}, 5))
    assert rule.result().state[key]["w"].tolist() == [2.5, 2.5]
    assert rule.result().mass[key] == 20
    with pytest.raises(ModuleError, match="tensors differ"):
        rule.add(ModularUpdate.of({key: {"w": np.zeros(3, np.float32)}}, 5))


def test_the_new_plan_gives_the_same_model_with_fewer_uploads(
    extended: dict[str, str], tmp_path: Path
) -> None:
    alone, joined = (
        trained(
            settings(extended, tmp_path, d2d__plan=plan, tree__edges=1, rounds=1,
                     data__train_per_answer=16),
            tmp_path / plan,
        )
        for plan in ("none", extended["PLANS"])
    )  # fmt: skip
    for key, tensors in alone.cloud().items():
        for name, array in tensors.items():
            assert np.allclose(array, joined.cloud()[key][name], atol=1e-5), (key, name)
    sent = [{link: f.rounds()[0].bytes_over(link) for link in ("uplink", "d2d")}
            for f in (alone, joined)]  # fmt: skip
    assert sent[0]["d2d"] == 0 < sent[1]["d2d"]
    assert sent[1]["uplink"] < sent[0]["uplink"]


def test_the_new_channel_falls_ever_faster(extended: dict[str, str]) -> None:
    channel = CHANNELS[extended["CHANNELS"]]()
    gain = channel.path_gain([1.0, 10.0, 100.0, 1000.0])
    assert np.log10(gain) == pytest.approx([-4, -6, -8, -12])
    drawn = channel.draw(np.full(4000, 10.0), np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(gain[1], rel=0.1)
