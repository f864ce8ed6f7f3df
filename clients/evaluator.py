"""Evaluation on one device: counts of right answers, which the tiers add up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from clients.examples import TaskData
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.report import Score


@torch.inference_mode()
def evaluate(
    model: MultimodalModel, data: Iterable[TaskData], *, batch_size: int
) -> dict[str, Score]:
    """Score ``model`` on each task's examples, in their order, in float32.

    In batches as large as those of training it takes less memory than that.
    """
    model.eval()
    scores: dict[str, Score] = {}
    for part in data:
        task, score = part.task, scores.get(part.task, Score())
        for start in range(0, len(part), batch_size):
            rows = torch.arange(
                start, min(start + batch_size, len(part)), device=part.targets.device
            )
            batch = part.index(rows)
            right, value = model.head(task).score(
                model(task, model.trimmed(batch.inputs)), batch.targets
            )
            score = score + Score(right, len(rows), value)
        scores[task] = score
    return scores


@torch.inference_mode()
def guesses(
    model: MultimodalModel, train: Iterable[TaskData], tests: Iterable[TaskData]
) -> dict[str, Score]:
    """Score the best answers that look at no input, of tasks whose chance is not exact.

    Args:
        model: It has the heads.
        train: Training examples, whose targets the answers may know.
        tests: What is to be answered.
    """
    known: defaultdict[str, list[Tensor]] = defaultdict(list)
    for part in train:
        known[part.task].append(part.targets)
    scores: dict[str, Score] = {}
    for part in (p for p in tests if p.task in known and len(p)):
        marks = model.head(part.task).guess(torch.cat(known[part.task]), part.targets)
        if marks is not None:
            right, value = marks
            scores[part.task] = scores.get(part.task, Score()) + Score(right, len(part), value)
    return scores


def tally(
    model: MultimodalModel,
    train: Iterable[TaskData],
    tests: Mapping[str, Iterable[TaskData]],
    *,
    batch_size: int,
) -> Iterator[tuple[str, str, Score]]:
    """Split, task and counts of all that a device reports, the ``guess`` on split ``iid`` too."""
    for split, data in tests.items():
        scores = evaluate(model, data, batch_size=batch_size)
        yield from ((split, task, score) for task, score in scores.items())
    for task, score in guesses(model, train, tests["iid"]).items():
        yield "guess", task, score
