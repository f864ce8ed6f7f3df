"""Every kind of module in a deployed tree, and after the run: the bits, the figures, the models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clients.resident import Device, all_profiles
from clients.store import DeviceStore
from hffm_flower import load
from hffm_flower.config import RunConfig
from hffm_flower.data import DATASETS
from hffm_flower.errors import OutputError
from hffm_flower.records import modules_of, update_of, write_state
from hffm_flower.runfiles import RunFiles
from hffm_flower.session.saved import recompute
from hffm_flower.tasks import TASKS
from tests.integration.test_nested import bits, deployed
from tests.support.kinds import KINDS
from tests.support.played import play

NOT_WHOLE = {"lora-share-a": ("cloud", "edge/0", "edge/1")}
"""Kind -> nodes without a whole model: what they lack never leaves the devices."""
ALIKE = {
    "bottleneck", "none", "lora-naive", "lora-ffa", "prompts", "last blocks", "lora in an encoder",
    "factors in an encoder", "whole",
}  # fmt: skip
"""Kinds whose messages look like those of another one."""


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] if k in ALIKE else []) for k in KINDS]
)
def test_a_deployed_tree_gives_the_bits_of_the_simulation(
    tiny: RunConfig, tmp_path: Path, kind: str
) -> None:
    config = tiny.with_values(rounds=2, tree__period=1, **KINDS[kind])
    simulated = play(config, tmp_path / "simulated")
    assert simulated.error is None
    again = config.with_values(paths__state=str(tmp_path / "state-2"))
    files = deployed(again, tmp_path / "deployed")
    assert bits(files.root) == bits(simulated.files.root)
    assert [r.lora_bound for r in files.rounds()] == [r.lora_bound for r in simulated.rounds]
    assert [r.bytes_over("uplink") for r in files.rounds()] == [
        r.bytes_over("uplink") for r in simulated.rounds
    ]


@pytest.mark.parametrize(
    "kind", sorted(KINDS.keys() - {"whole"})
)  # there, every head counts for all
def test_every_module_that_counts_examples_has_been_changed(
    tiny: RunConfig, tmp_path: Path, kind: str
) -> None:
    """What a device says that it has trained is not what it was sent or began with."""
    config = tiny.with_values(rounds=3, tree__period=1, **KINDS[kind])
    run = play(config, tmp_path / "run")
    assert run.error is None
    for call in run.app.of("train"):
        before = Device(config, call.index, torch.device("cpu")).model()
        before.load(modules_of(call.question.content))
        update = update_of(call.reply.content)
        for key in update.live():
            same = [n for n, a in before.state([key])[key].items()
                    if np.array_equal(a, update.state[key][n])]  # fmt: skip
            assert not same, f"{key}: {same}"


@pytest.mark.parametrize("kind", KINDS)
def test_figures_and_models_are_read_back(tiny: RunConfig, tmp_path: Path, kind: str) -> None:
    config = tiny.with_values(rounds=4, tree__period=1, **KINDS[kind])
    run = play(config, tmp_path / "run")
    assert run.error is None
    busy = [p for p in all_profiles(config) if not p.idle]
    for profile in busy:
        store = DeviceStore(Path(config.paths.state) / "1", profile.index)
        if store.versions():
            write_state(run.files.device(profile.index), store.read(config.rounds + 1))
    again, saved = recompute(run.files.root)
    assert again == saved
    for node in ("cloud", "edge/0", "edge/1"):
        if node in NOT_WHOLE.get(kind, ()):
            with pytest.raises(OutputError, match="load a lower node"):
                load(run.files.root, node)
        else:
            assert answers(run.files, node) >= {"tiny-vqa"}
    for profile in busy:
        tasks = config.data.tasks if config.model.whole else profile.tasks
        assert answers(run.files, f"device/{profile.index}") == set(tasks)


def answers(files: RunFiles, node: str) -> set[str]:
    """Tasks of a node's model, each of which has given an answer from what the model can read."""
    model = load(files.root, node)
    for task in model.tasks:
        spec = TASKS[task]
        data = DATASETS[spec.dataset](task, train_per_answer=2, test_per_answer=2, seed=1)
        read = [m for m in spec.inputs if m in model.modalities]
        inputs = {m: data.items(m, "test", [0])[0].load() for m in read}
        answer = model.predict(task, **inputs)
        assert answer in spec.answers if spec.answers else np.isfinite(np.array(answer)).all()
    return set(model.tasks)
