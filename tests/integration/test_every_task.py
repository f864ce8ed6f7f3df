"""One federation with all modalities, all packaged tasks and every kind of head at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from clients.resident import all_profiles
from hffm_flower.cli.options import configure
from hffm_flower.config import RunConfig
from hffm_flower.data import DATASETS
from hffm_flower.models.head import Marks
from hffm_flower.models.regression import ForecastHead, RegressionHead
from hffm_flower.tasks import PACKAGED, TASKS
from tests.support import tiny
from tests.support.played import play

NAIVE = {"watch-rate": 0.670, "watch-forecast": 0.627}
"""R2 of naive answers on this run's examples: median of training; 0.7 last sample, 0.3 mean."""
DOCS = Path(__file__).parents[2] / "docs" / "tasks.md"


@pytest.fixture
def everything(tmp_path: Path) -> Iterator[RunConfig]:
    """The preset with fewer devices, rounds and examples, and more passes over those."""
    tiny.forget()
    yield configure(None, preset="everything").with_values(
        seed=8, rounds=5, tree__devices=8, tree__edges=2, train__local_epochs=3,
        data__train_per_answer=12, data__test_per_answer=6, train__device="cpu",
        paths__cache=str(tmp_path / "cache"), paths__state=str(tmp_path / "state"),
    )  # fmt: skip
    tiny.forget()


def test_every_head_of_one_federation_is_above_its_chance(
    everything: RunConfig, tmp_path: Path
) -> None:
    """By its finer measure and by right answers, on 60 test examples of each task.

    Whole captions are not learnt in so short a training: their words are, by BLEU.
    """
    profiles = all_profiles(everything)
    assert {len(p.modalities) for p in profiles} == {1, 2, 3, 4}
    assert {len(p.tasks) for p in profiles} == {1, 2, 3, 4, 5}
    assert set(everything.data.tasks) == set(PACKAGED)
    played = play(everything, tmp_path / "out")
    assert played.error is None
    losses = [report.loss_sum / report.trained for report in played.rounds]
    assert losses[-1] < 0.5 * losses[0]
    assert all(len(report.devices) == 8 for report in played.rounds)
    summary = played.result["summary"]
    assert (summary["tier"], summary["uncovered"]) == ("cloud", 0.0)
    for task in PACKAGED:
        finer = summary["measures"].get(task)
        right, chance = summary["per_task"][task], summary["chance"][task]
        value, guessed = (finer["value"], finer["chance"]) if finer else (right, chance)
        assert value > max(guessed, NAIVE.get(task, 0.0)) + 0.1, task
        assert right > chance + 0.1 or task == "emoji-caption"


def test_naive_answers_of_the_watch_are_as_documented() -> None:
    """The best that one constant, and a blend of a window's last sample and mean, can do."""
    told = DOCS.read_text(encoding="utf-8")
    train, test = targets("watch-rate")
    for constant in (train.mean(0), train.median(0).values):
        assert shown(RegressionHead(8, 1).score(constant.expand_as(test), test), len(test)) in told
    _, test = targets("watch-forecast")
    for share in (0.0, 0.7, 0.9):  # of the last sample; in deviations from the mean
        blend = share * (test[:, 2:3] - test[:, :1]) / test[:, 1:2]
        forecast = blend.expand(-1, PACKAGED["watch-forecast"].horizon, -1)
        assert shown(ForecastHead(8, 15).score(forecast, test), len(test)) in told


def targets(task: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Of training and test, as the default settings draw them."""
    data = DATASETS[TASKS[task].dataset](task, train_per_answer=100, test_per_answer=50, seed=1)
    train, test = (
        torch.from_numpy(np.asarray(data.targets(s, range(len(data.labels(s))))))
        for s in ("train", "test")
    )
    return train, test


def shown(marks: Marks, count: int) -> str:
    return f"{marks[0] / count:.3f} (R2 {marks[1] / count:.3f})"
