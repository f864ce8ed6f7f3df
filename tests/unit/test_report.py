from __future__ import annotations

import json
from functools import reduce

import pytest

from hffm_flower.report import RoundReport, Score, TaskFacts, accuracy, mean_accuracy


def report(device: int, *, t: int = 3) -> RoundReport:
    made = RoundReport(
        t, loss_sum=float(device), trained=10 * device, devices=[device],
        work={f"{device}": 1e9 * device}, seconds=float(device), void=[device % 2],
        dropped={f"{device + 100}": "late"},
    )  # fmt: skip
    made.add_score("edge", "iid", "watch7", Score(device, 10, float(device)))
    if device % 2:
        made.add_score("edge", "skewed", "easyvqa10", Score(1, 2, 1.0))
    return made


def total(*devices: int) -> RoundReport:
    whole = RoundReport(3)
    for device in devices:
        whole.add(report(device))
    return whole


def test_figures_add_up_over_any_tree() -> None:
    flat = total(0, 1, 2, 3)
    left, right = total(2, 3), total(1, 0)
    tree = RoundReport(3)
    tree.add(right)
    tree.add(left)
    assert tree == flat
    assert (flat.loss_sum, flat.trained, flat.devices) == (6.0, 60, [0, 1, 2, 3])
    assert flat.work == {str(k): 1e9 * k for k in range(4)}
    assert flat.void == [0, 1]
    assert flat.seconds == 3.0
    assert flat.dropped == {str(100 + k): "late" for k in range(4)}
    assert flat.scores == {
        "edge": {"iid": {"watch7": Score(6, 40, 6.0)}, "skewed": {"easyvqa10": Score(2, 4, 2.0)}}
    }


def test_adding_leaves_the_other_alone() -> None:
    other = report(1)
    whole = RoundReport(3)
    whole.add(other)
    whole.add(other)
    assert other == report(1)


def test_a_report_is_one_line_of_json_and_back() -> None:
    whole = total(0, 1, 3)
    line = whole.to_json()
    assert "\n" not in line
    assert RoundReport.from_json(line) == whole
    assert json.loads(line)["scores"]["edge"]["iid"]["watch7"] == {
        "correct": 4, "total": 30, "value": 4.0
    }  # fmt: skip


def test_scores_add() -> None:
    assert reduce(Score.__add__, [Score(1, 2, 0.5)] * 3, Score()) == Score(3, 6, 1.5)


@pytest.mark.parametrize(
    ("score", "expected", "want"),
    [
        (Score(8, 10), 10, 0.8),
        (Score(8, 10), 20, 0.45),  # ten examples nobody could evaluate, at 0.1
        (Score(), 20, 0.1),
        (Score(), 0, 0.1),
        (Score(3, 4), 2, 0.75),  # more than was announced: no negative share
    ],
)
def test_what_is_uncovered_counts_as_chance(score: Score, expected: int, want: float) -> None:
    assert accuracy(score, TaskFacts(0.1, True, expected)) == pytest.approx(want)


def test_boxes_are_left_out_of_the_mean_unless_they_are_all_there_is() -> None:
    easy, box = TaskFacts(0.1, True, 10), TaskFacts(0.0, False, 10)
    scores = {"a": Score(5, 10), "box": Score(9, 10)}
    assert mean_accuracy(scores, {"a": easy, "box": box}) == pytest.approx(0.5)
    assert mean_accuracy(scores, {"box": box}) == pytest.approx(0.9)
    assert mean_accuracy(scores, {"a": easy, "b": easy}) == pytest.approx(0.3)
