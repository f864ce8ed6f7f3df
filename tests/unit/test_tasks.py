"""What two nodes must agree on of a task."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, cast

import pytest

from hffm_flower.tasks import TASKS, TaskSpec, definition, definitions, difference

WATCH = TASKS["watch7"]
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "order of answers": (
        {"answers": WATCH.answers[::-1]}, "its answers of task 'watch7': '7 (digest",
    ),
    "number of answers": (
        {"answers": WATCH.answers[:6]}, "its answers of task 'watch7': '6 (digest",
    ),
    "spelling": (
        {"answers": ("Pendulum", *WATCH.answers[1:])}, "its answers of task 'watch7': '7 (digest",
    ),
    "head": ({"head": "box"}, "its head of task 'watch7': 'box', here 'classification'"),
    "stream": (
        {"inputs": {"sensor": "spectrum"}},
        "its inputs of task 'watch7': 'sensor=spectrum', here 'sensor=sensor'",
    ),
    "words": ({"parts": ("slow",)}, "its parts of task 'watch7': '1 (digest"),
    "what is to be found": ({"target": "text"}, "its target of task 'watch7': 'text', here ''"),
    "scale": ({"scale": (1.0, 2.0)}, "its scale of task 'watch7': '(1.0, 2.0)', here '(0.0, 1.0)'"),
    "horizon": ({"horizon": 5}, "its horizon of task 'watch7': '5', here '0'"),
    "required": ({"required": ()}, "its required of task 'watch7': '', here 'sensor'"),
    "optional": ({"optional": ("text",)}, "its optional of task 'watch7': 'text', here ''"),
}  # fmt: skip


def told(spec: TaskSpec, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    """What a node with another `watch7` sends."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setitem(cast("dict[str, TaskSpec]", TASKS), "watch7", spec)
        sent: dict[str, dict[str, str]] = json.loads(json.dumps(definitions(["watch7", "nothing"])))
    return sent


@pytest.mark.parametrize("change", CHANGES)
def test_a_difference_is_named(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values, why = CHANGES[change]
    theirs = told(dataclasses.replace(WATCH, **values), monkeypatch)
    assert difference(theirs).startswith(why)


def test_equal_definitions_have_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    assert difference(definitions(TASKS)) == ""
    assert difference({}) == ""
    # What a machine is told of the world is not part of the task.
    assert difference(told(dataclasses.replace(WATCH, chance=0.5), monkeypatch)) == ""


def test_definitions_of_all_tasks_differ() -> None:
    assert len({json.dumps(definition(t)) for t in TASKS}) == len(TASKS)


@pytest.mark.parametrize(
    ("theirs", "why"),
    [
        ({"smell3": {}}, "task 'smell3' is not known here"),
        ({"watch7": {}}, "its answers of task 'watch7': None, here '7 (digest"),
        ({"watch7": {**definition("watch7"), "prompt": "x"}}, "its prompt of task 'watch7': 'x'"),
    ],
)
def test_other_forms_are_differences(theirs: Mapping[str, Any], why: str) -> None:
    assert difference(theirs).startswith(why)
