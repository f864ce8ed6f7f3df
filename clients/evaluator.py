"""Evaluation on one device: counts of right answers, which the tiers add up."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from clients.examples import TaskData
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.report import Score

BATCH = 64


@torch.inference_mode()
def evaluate(model: MultimodalModel, data: Iterable[TaskData]) -> dict[str, Score]:
    """Score ``model`` on each task's examples, in batches of 64 in their order, in float32."""
    model.eval()
    scores: dict[str, Score] = {}
    for part in data:
        task, score = part.task, scores.get(part.task, Score())
        for start in range(0, len(part), BATCH):
            rows = torch.arange(start, min(start + BATCH, len(part)), device=part.targets.device)
            batch = part.index(rows)
            right, value = model.head(task).score(
                model(task, model.trimmed(batch.inputs)), batch.targets
            )
            score = score + Score(right, len(rows), value)
        scores[task] = score
    return scores
