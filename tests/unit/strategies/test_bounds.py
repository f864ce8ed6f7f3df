"""What a child may claim: scores within its shard, modules within the finite numbers."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict

from hffm_flower.errors import DivergedError
from hffm_flower.modules import ModularUpdate
from hffm_flower.report import RoundReport, Score
from hffm_flower.schedule import Schedule
from strategies.edge import EdgeStrategy
from strategies.modular import Member
from tests.support.memory import KEYS, A, module, question, same


def strategy(optimizer: str = "*=mean") -> EdgeStrategy:
    schedule = Schedule.of(KEYS, method="edge-only", policy="", period=1, rounds=9)
    member = Member(0, KEYS, examples=50.0, tests={"watch7": 10})
    made = EdgeStrategy(
        0, {12: member}, schedule, seed=1, fraction=1.0, rule="mean",
        optimizer=optimizer, quorum=0.5, deadline_s=1.0, report_every=1,
    )  # fmt: skip
    made.adopt({A: module(1, 1)}, 0)
    return made


@pytest.mark.parametrize(
    ("name", "values", "believed"),
    [
        ("iid/watch7", [4.0, 10.0, 4.0], True),
        ("skewed/watch7", [4.0, 30.0, 4.0], True),
        ("iid/watch7", [1e9, 1e9, 1e9], False),
        ("iid/watch7", [11.0, 11.0, 11.0], False),
        ("iid/watch7", [5.0, 4.0, 5.0], False),
        ("iid/watch7", [-1.0, 4.0, 0.0], False),
        ("iid/watch7", [4.0, 10.0, 99.0], False),
        ("iid/other", [1.0, 1.0, 1.0], False),
        ("train/watch7", [1.0, 1.0, 1.0], False),
    ],
)
def test_scores_are_believed_within_the_devices_shard(
    name: str, values: list[float], believed: bool
) -> None:
    report = RoundReport(1)
    content = RecordDict({"scores": MetricRecord({name: values})})
    strategy().score([Message(content, reply_to=question(12))], report, "edge")
    split, _, task = name.partition("/")
    expected = Score(int(values[0]), int(values[1]), values[2])
    assert report.scores == ({"edge": {split: {task: expected}}} if believed else {})
    assert report.evaluated == {"edge": [0] if believed else []}


def test_an_optimizer_that_diverges_publishes_nothing() -> None:
    made = strategy(optimizer="*=momentum:1e38:0.9")
    far = ModularUpdate.of({A: {"w": np.full(2, 1e5, np.float32)}}, 3)
    with np.errstate(over="ignore"), pytest.raises(DivergedError, match=r"adapter/a diverged"):
        made.publish(far, 4, final=[A])
    assert same(made.modules[A], module(1, 1))
