"""A finished run, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients import client_app
from hffm_flower import load
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError, OutputError
from hffm_flower.runfiles import RunFiles
from hffm_flower.session.saved import recompute
from hffm_flower.tasks import TASKS
from strategies.federate import federate
from tests.support.fake_grid import FakeGrid


def finished(config: RunConfig, folder: Path) -> RunFiles:
    files = RunFiles.create(folder)
    federate(FakeGrid(client_app.app, config.tree.devices, config.to_flwr()), config, files)
    return files


@pytest.fixture
def run(tiny: RunConfig, tmp_path: Path) -> RunFiles:
    return finished(tiny, tmp_path / "run")


def test_figures_come_out_again(run: RunFiles) -> None:
    again, saved = recompute(run.root)
    assert again == saved


def test_figures_of_edges_come_out_again(tiny: RunConfig, tmp_path: Path) -> None:
    files = finished(tiny.with_values(method="edge-only"), tmp_path / "edges")
    again, saved = recompute(files.root)
    assert saved["tier"] == "edge"
    assert again == saved


def test_altered_models_give_other_figures(run: RunFiles) -> None:
    blank = {k: {n: a * 0 for n, a in s.items()} for k, s in run.cloud().items()}
    run.save_cloud(blank)
    again, saved = recompute(run.root)
    assert again["per_task"] != saved["per_task"]


def example(task: str) -> dict[str, Any]:
    from hffm_flower.data import DATASETS

    spec = TASKS[task]
    data = DATASETS[spec.dataset](task, train_per_answer=2, test_per_answer=2, seed=1)
    return {m: data.items(m, "test", np.array([0]))[0].load() for m in spec.inputs}


@pytest.mark.parametrize("node", [None, "edge/0", "edge/1"])
def test_a_model_predicts_every_task(node: str | None, run: RunFiles) -> None:
    model = load(run.root, node)
    assert model.tasks
    for task in model.tasks:
        answer = model.predict(task, **example(task))
        if TASKS[task].answers:
            assert answer in TASKS[task].answers
        else:
            assert len(answer) == 4
            assert all(np.isfinite(v) for v in answer)


def test_optional_modalities_may_be_left_out_required_ones_not(run: RunFiles) -> None:
    model = load(run.root)
    task = next(t for t in model.tasks if TASKS[t].optional)
    inputs = example(task)
    required = {m: v for m, v in inputs.items() if m in TASKS[task].required}
    assert model.predict(task, **required) in TASKS[task].answers
    with pytest.raises(ConfigError, match=f"task '{task}' needs {TASKS[task].required[0]}"):
        model.predict(task)
    with pytest.raises(ConfigError, match="unknown modality"):
        model.predict(task, smell="none", **required)
    with pytest.raises(ConfigError, match="unknown task 'nonsense'"):
        model.predict("nonsense")


def test_a_device_has_its_own_tasks_and_modalities(tiny: RunConfig, tmp_path: Path) -> None:
    files = finished(tiny.with_values(method="local"), tmp_path / "local")
    from clients.resident import all_profiles
    from clients.store import DeviceStore
    from hffm_flower.records import write_state

    for profile in all_profiles(tiny):
        own = DeviceStore(Path(tiny.paths.state) / "1", profile.index).read(tiny.rounds + 1)
        write_state(files.device(profile.index), own)
    busy = next(p for p in all_profiles(tiny) if not p.idle)
    model = load(files.root, f"device/{busy.index}")
    assert set(model.tasks) == set(busy.tasks)
    assert set(model.modalities) == set(busy.modalities)
    with pytest.raises(OutputError, match="load a lower node"):
        load(files.root)


@pytest.mark.parametrize(
    ("node", "error", "match"),
    [
        ("edge/9", OutputError, "no model of edge/9"),
        ("edge", ConfigError, "edge/N or device/N"),
        ("fog/1", ConfigError, "unknown node 'fog'"),
        ("device/99", ConfigError, "device index 99"),
    ],
)
def test_unknown_nodes(node: str, error: type[Exception], match: str, run: RunFiles) -> None:
    with pytest.raises(error, match=match):
        load(run.root, node)


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no finished run"):
        load(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps([1]), encoding="utf-8")
    with pytest.raises(OutputError, match="is not a result"):
        load(tmp_path)


def test_a_cloud_that_averages_nothing_has_no_model(tiny: RunConfig, tmp_path: Path) -> None:
    files = finished(tiny.with_values(method="edge-only"), tmp_path / "edges")
    assert files.cloud() == {}
    with pytest.raises(OutputError, match=r"the cloud has no whole model .*its modules: none"):
        load(files.root)
    assert load(files.root, "edge/1").tasks


def test_a_cloud_without_heads_has_no_whole_model(tiny: RunConfig, tmp_path: Path) -> None:
    mixed = tiny.with_values(server__modules="head/*=edge")
    files = finished(mixed, tmp_path / "mixed")
    assert not any(str(k).startswith("head/") for k in files.cloud())
    with pytest.raises(OutputError, match="no whole model"):
        load(files.root)
    assert load(files.root, "edge/0").tasks
