"""Counts of right answers, against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clients.evaluator import evaluate
from hffm_flower.config import RunConfig
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.modules import ModuleKey
from hffm_flower.report import Score
from tests.support.tiny import examples, model_of

BATCH = 64
HEAD = ModuleKey.parse("head/tiny-vqa")


def always(tiny: RunConfig, answer: int) -> MultimodalModel:
    """A model whose classifier answers the same to everything."""
    model = model_of(tiny, ["tiny-vqa", "tiny-box"], ("image",))
    state = {n: np.zeros_like(a) for n, a in model.state([HEAD])[HEAD].items()}
    state["out.bias"][answer] = 1.0
    model.load({HEAD: state})
    return model


@pytest.mark.parametrize("answer", range(4))
def test_counts_by_hand(tiny: RunConfig, answer: int) -> None:
    data = examples("tiny-vqa", 160, ("image",)).index(torch.arange(BATCH + 9))
    right = int((data.targets == answer).sum())
    assert 0 < right < len(data)
    scores = evaluate(always(tiny, answer), [data], batch_size=BATCH)
    assert scores == {"tiny-vqa": Score(right, BATCH + 9, float(right))}


def test_parts_of_one_task_add_up_and_batches_do_not_matter(tiny: RunConfig) -> None:
    model = model_of(tiny, ["tiny-vqa", "tiny-box"], ("image",))
    data, box = examples("tiny-vqa", 160, ("image",)), examples("tiny-box", 30, ("image",))
    whole = evaluate(model, [data, box], batch_size=BATCH)
    cut = [data.index(torch.arange(a, b)) for a, b in ((0, 1), (1, 70), (70, 160))]
    parts = evaluate(model, [*cut, box], batch_size=BATCH)
    assert parts["tiny-vqa"] == whole["tiny-vqa"]
    assert whole["tiny-box"].total == 30
    assert 0 < whole["tiny-box"].value < 30
    assert parts["tiny-box"] == whole["tiny-box"]


def test_nothing_to_evaluate(tiny: RunConfig) -> None:
    model = model_of(tiny, ["tiny-vqa"], ("image",))
    assert evaluate(model, [], batch_size=BATCH) == {}
    empty = examples("tiny-vqa", 4, ("image",)).index(torch.arange(0))
    assert evaluate(model, [empty], batch_size=BATCH) == {"tiny-vqa": Score()}


def test_evaluation_changes_nothing(tiny: RunConfig) -> None:
    model = model_of(tiny, ["tiny-vqa"], ("image",))
    before = model.state()
    evaluate(model, [examples("tiny-vqa", 4, ("image",))], batch_size=BATCH)
    after = model.state()
    assert all(np.array_equal(a, after[k][n]) for k, s in before.items() for n, a in s.items())
    assert all(p.grad is None for p in model.parameters())
