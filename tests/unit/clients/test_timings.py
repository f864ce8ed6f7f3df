"""When a node's messages went: lines in the file that its config names."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message

from clients.runner import NodeRunner
from clients.timings import note, tensor_bytes
from tests.support.nodes import QUICK, Counter, FakeLink, question


def test_lines_are_added_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    for number in (1, 2):
        note({"timings": str(path)}, "pushed", number=number)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"kind": "pushed", "number": 1}, {"kind": "pushed", "number": 2}]


def test_who_is_not_asked_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    note({}, "pushed")
    note({"timings": ""}, "pushed")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "clients.timings"):
        note({"timings": str(tmp_path / "no" / "file")}, "pushed")
    assert "timings are not written" in caplog.text


def test_the_tensors_of_a_message() -> None:
    asked = question(1)
    assert tensor_bytes(asked) == 0
    asked.content["a"] = ArrayRecord(
        {"x": Array("uint8", (5,), "raw", np.zeros(5, "u1").tobytes())}
    )
    assert tensor_bytes(asked) == 5
    assert tensor_bytes(Message(Error(1, "away"), reply_to=asked)) == 0


def test_a_node_times_what_it_fetches_and_hands_in(tmp_path: Path) -> None:
    stop, path = threading.Event(), tmp_path / "timings.jsonl"
    asked = question(5)
    asked.content["a"] = ArrayRecord({"x": Array("uint8", (7,), "raw", bytes(7))})
    link = FakeLink(stop, [None, asked])
    before = time.monotonic()
    NodeRunner(lambda: link, Counter().app, {"timings": str(path)}, pace=QUICK).run(stop)
    pulled, pushed = (json.loads(line) for line in path.read_text().splitlines())
    assert (pulled["kind"], pulled["type"], pulled["group"], pulled["bytes"]) == (
        "pulled", "train", "3", 7,
    )  # fmt: skip
    assert (pushed["kind"], pushed["group"], pushed["bytes"]) == ("pushed", "3", 0)
    times = [before, pulled["began_s"], pulled["ended_s"], pushed["began_s"], pushed["ended_s"]]
    assert times == sorted(times)
