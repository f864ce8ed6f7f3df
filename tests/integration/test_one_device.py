"""A federation of one device is central training."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from clients.store import DeviceStore
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from hffm_flower.runfiles import RunFiles
from hffm_flower.session.central import train_pooled
from tests.support.outcomes import bits, farthest
from tests.support.played import play


def single(tiny: RunConfig, **changes: object) -> RunConfig:
    return tiny.with_values(
        tree__devices=1, tree__edges=1, tree__period=1, rounds=3, data__min_tasks=3,
        data__full_modality_share=1.0, server__evaluate_every=1, train__local_epochs=2, **changes,
    )  # fmt: skip


def central(config: RunConfig, out: Path) -> RunFiles:
    files = RunFiles.create(out)
    train_pooled(
        config.with_values(method="central"), files,
        event=lambda event: None, stop=threading.Event(),
    )  # fmt: skip
    return files


def test_one_device_alone_is_central_training_bit_for_bit(tiny: RunConfig, tmp_path: Path) -> None:
    """Method ``local`` averages nothing, so not one bit may differ."""
    run = play(single(tiny, method="local"), tmp_path / "federated")
    pooled = central(single(tiny), tmp_path / "central")
    own = DeviceStore(Path(tiny.paths.state) / "1", 0).read(4)
    assert bits(own) == bits(pooled.cloud())
    assert [r.loss_sum for r in run.rounds] == [r.loss_sum for r in pooled.rounds()]
    assert [r.scores["device"] for r in run.rounds] == [r.scores["cloud"] for r in pooled.rounds()]


@pytest.mark.parametrize("method", ["star", "h-fedfm"])
def test_one_device_in_a_tree_is_central_training(
    tiny: RunConfig, tmp_path: Path, method: str
) -> None:
    """A mean of one, n theta / n in float32, rounds: equal to 1e-6 after one edge round."""
    config = single(tiny, method=method).with_values(rounds=1)
    run = play(config, tmp_path / "federated")
    pooled = central(config, tmp_path / "central")
    assert farthest(run.files.cloud(), pooled.cloud()) <= 1e-6
    assert run.rounds[0].loss_sum == pooled.rounds()[0].loss_sum
    for split, scores in run.rounds[0].scores["cloud"].items():
        for task, score in scores.items():
            other = pooled.rounds()[0].scores["cloud"][split][task]
            assert (score.correct, score.total) == (other.correct, other.total)
            assert score.value == pytest.approx(other.value, rel=1e-6)


def test_central_is_no_federation(tiny: RunConfig, tmp_path: Path) -> None:
    run = play(tiny.with_values(method="central"), tmp_path / "out")
    assert isinstance(run.error, ConfigError)
    assert run.grid.log == []
