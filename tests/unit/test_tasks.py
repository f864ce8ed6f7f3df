"""What two nodes must agree on of a task."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from hffm_flower.errors import ConfigError
from hffm_flower.tasks import (
    PACKAGED,
    TASK_FILE,
    TASKS,
    TaskSpec,
    data_folder,
    definition,
    definitions,
    difference,
    spec_of,
)

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


def task_file(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / TASK_FILE).write_text(text)


SPEC = """dataset = "prepared"
head = "classification"
required = ["image"]
optional = []
answers = ["a", "b"]
chance = 0.5
content = "0123456789abcdef0123"
root = "/data"
[inputs]
image = "image"
"""


def test_prepared_tasks_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(TASKS) == list(PACKAGED)
    monkeypatch.setenv("HFFM_DATA", str(tmp_path / "tasks"))
    assert list(TASKS) == list(PACKAGED)
    for name in ("b2", "a2", ".a2.x7", "watch7"):
        task_file(tmp_path / "tasks", name, SPEC)
    (tmp_path / "tasks" / "half").mkdir()
    task_file(tmp_path, "outside", SPEC)
    assert list(TASKS) == [*PACKAGED, "a2", "b2"]
    assert len(TASKS) == len(PACKAGED) + 2
    assert TASKS["watch7"] == WATCH
    spec = TASKS["a2"]
    assert (spec.answers, spec.inputs, spec.synthetic) == (("a", "b"), {"image": "image"}, False)
    assert definition("a2")["examples"] == "digest 0123456789abcdef"
    assert "examples" not in definition("watch7")
    for name in (".a2.x7", "half", "../outside", "outside", "", ".", "a2/", "\0"):
        assert name not in TASKS
    with pytest.raises(
        ConfigError, match=r"unknown task 'a3'; allowed: .*, a2, b2; 'hffm data prepare'"
    ):
        spec_of("a3", key="data.x")


def test_the_folder_of_prepared_tasks_is_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HFFM_DATA")
    assert data_folder() == tmp_path / ".local" / "share" / "hffm-flower" / "tasks"
    monkeypatch.setenv("HFFM_DATA", "~/mine")
    assert data_folder() == tmp_path / "mine"
    monkeypatch.setenv("HFFM_DATA", "mine")
    with pytest.raises(ConfigError, match="HFFM_DATA='mine' must be an absolute path"):
        list(TASKS)


def test_a_changed_task_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFFM_DATA", str(tmp_path))
    task_file(tmp_path, "a2", SPEC)
    assert len(TASKS["a2"].answers) == 2
    (tmp_path / "a2" / TASK_FILE).write_text(SPEC.replace('"a", "b"', '"a", "b", "c"'))
    assert len(TASKS["a2"].answers) == 3


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("chance = 0.5\n", "", "chance: Field required"),
        ('["a", "b"]', "3", "answers: Input should be a valid tuple"),
        ("[inputs]", "[inputs", "Expected ']'"),
    ],
)
def test_a_damaged_task_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, why: str
) -> None:
    monkeypatch.setenv("HFFM_DATA", str(tmp_path))
    task_file(tmp_path, "a2", SPEC.replace(old, new))
    with pytest.raises(ConfigError, match=rf"a2/task.toml' is no task \({why}") as caught:
        TASKS["a2"]
    assert "prepare it again" in str(caught.value)
