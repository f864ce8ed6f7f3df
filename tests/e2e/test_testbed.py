"""`hffm testbed` gives the bits of `hffm run` over shaped links, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hffm_flower.testbed.namespaces import OWN
from tests.support.bench import namespaces, skip_unless_allowed
from tests.support.up import Up, bits, set_words, simulate

pytestmark = pytest.mark.slow

SETTINGS: dict[str, object] = {
    "rounds": 2,
    "tree.devices": 4,
    "tree.edges": 2,
    "data.tasks": "easyvqa10",
    "data.train-per-answer": 6,
    "data.test-per-answer": 3,
    "data.full-modality-share": 1.0,
    "model.backbone": "small",
    "train.local-epochs": 1,
    "server.deadline-s": 120.0,
    "d2d.plan": "relay",
    "radio.area-m": 1000.0,
    "radio.backhaul-mbit-s": 20.0,
    "radio.backhaul-delay-ms": 20.0,
}
WORDS = set_words(SETTINGS)


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Up]:
    skip_unless_allowed()
    started = Up(tmp_path, *WORDS, command="testbed")
    yield started
    started.end()


def test_the_bits_of_hffm_run_and_every_message_timed(bed: Up, tmp_path: Path) -> None:
    assert bed.wait() == 0, bed.said.read_text() + bed.log()
    bed.nothing_is_left()
    assert bits(bed.run) == bits(simulate(tmp_path / "simulated", *WORDS))
    told = json.loads((bed.run / "testbed.json").read_text())
    among = [m for m in told["messages"] if not m["flower"]]
    assert {m["t"] for m in among} == {1, 2}
    assert all(m["ratio"] is None or m["ratio"] > 0.9 for m in among)  # no faster than its link
    assert {m["link"] for m in told["messages"]} == {"d2d", "uplink", "downlink"}
    assert {(e["edge"], e["t"]) for e in told["events"]} == {(0, 1), (1, 1), (0, 2), (1, 2)}
    assert (bed.run / "testbed.png").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_from_outside_leaves_nothing_behind(bed: Up, number: int) -> None:
    bed.until("run.log", "keys registered")
    spaces = {os.readlink(f"/proc/{p.pid}/ns/net") for p in bed.of_it()} - {os.readlink(OWN)}
    assert spaces
    bed.process.send_signal(number)
    assert bed.wait() == (-9 if number == signal.SIGKILL else 130)
    bed.nothing_is_left()
    assert not spaces & namespaces()
