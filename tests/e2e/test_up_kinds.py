"""`hffm up` gives the bits of `hffm run` for modules whose shapes or holders differ by device."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hffm_flower.lora import rank_of
from hffm_flower.modules import ModuleKey, ModuleKind
from hffm_flower.records import read_state
from tests.support.up import Up, bits, set_words, simulate

COMMON: dict[str, object] = {
    "seed": 2,
    "rounds": 2,
    "tree.devices": 3,
    "tree.edges": 2,
    "tree.period": 1,
    "data.tasks": "watch7",
    "data.train-per-answer": 4,
    "data.test-per-answer": 2,
    "data.full-modality-share": 1.0,
    "train.local-epochs": 1,
    "server.deadline-s": 300.0,
}
LORA = {"model.adapter": "lora", "model.lora-ranks": "2 3 4", "server.edge-rank": 4}
EXPERTS = {
    "model.adapter": "experts", "model.experts": 3, "model.experts-held": 2, "tree.edges": 1,
}  # fmt: skip
READING = {"data.tasks": "easyvqa10", "data.train-per-answer": 2, "data.test-per-answer": 1}
SLOW: dict[str, dict[str, object]] = {
    "lora-exact whole": {**LORA, "tree.devices": 4, "server.edge-rank": 0, "tree.period": 2},
    "lora-ffa": {"model.adapter": "lora", "model.lora-ranks": 3, "server.lora-rule": "lora-ffa"},
    "experts on two edges": {**EXPERTS, "tree.edges": 2, "tree.devices": 4},
    "tuned text encoder": {**READING, "model.tune": "text=lora:4:1"},
}


def up_and_run(folder: Path, changes: dict[str, object]) -> Path:
    """The folder of a deployed run, once it has the bits of the simulated one."""
    words = set_words({**COMMON, **changes})
    simulated = bits(simulate(folder / "simulated", *words))
    up = Up(folder, *words)
    try:
        assert up.wait() == 0, up.said.read_text() + up.log()
        up.nothing_is_left()
    finally:
        up.end()
    assert bits(up.run) == simulated
    return up.run


@pytest.mark.slow
def test_lora_of_mixed_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the user's environment asks for several threads in linear algebra."""
    monkeypatch.setitem(os.environ, "OPENBLAS_NUM_THREADS", "2")
    run = up_and_run(tmp_path, dict(LORA))
    edges = [read_state(run / "edges" / f"{index}.safetensors") for index in (0, 1)]
    ranks = {rank_of(s) for e in edges for k, s in e.items() if k.kind is ModuleKind.ADAPTER}
    assert max(ranks) == 4
    lines = (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    bounds = [json.loads(line)["lora_bound"] for line in lines]
    assert all(bound and max(bound.values()) > 0.0 for bound in bounds)


@pytest.mark.slow
def test_experts(tmp_path: Path) -> None:
    run = up_and_run(tmp_path, dict(EXPERTS))
    experts = [ModuleKey(ModuleKind.EXPERT, str(j)) for j in range(3)]
    assert set(experts) <= read_state(run / "model.safetensors").keys()


@pytest.mark.slow
@pytest.mark.parametrize("kind", SLOW)
def test_the_others(tmp_path: Path, kind: str) -> None:
    up_and_run(tmp_path, SLOW[kind])
