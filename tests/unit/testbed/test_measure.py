"""Timings of devices become messages beside the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hffm_flower.config import RunConfig
from hffm_flower.ledger import LinkClass
from hffm_flower.testbed.measure import read_timings, summaries
from hffm_flower.testbed.plot import draw_times
from hffm_flower.testbed.shaping import modelled_s
from hffm_flower.tree import plant

NETWORK = plant(RunConfig.load(base={"tree.devices": 4, "tree.edges": 2, "d2d.plan": "relay"}))
UP = 2
"""Phase of the wire."""


def peers(t: int, *, sent: list[list[float]] | None = None, ready: list[list[float]] | None = None,
          device: int = 0) -> str:  # fmt: skip
    line = {"kind": "peers", "t": t, "device": device, "sent": sent or [], "ready": ready or []}
    return json.dumps(line)


def write(folder: Path, device: int, *lines: str) -> None:
    (folder / f"device-{device}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_message_between_devices(tmp_path: Path) -> None:
    write(tmp_path, 0, peers(2, sent=[[UP, 0, 0, 1, 10**6, 50.0, 54.0]]))
    write(tmp_path, 1, peers(2, ready=[[UP, 0, 0, 49.0]], device=1))
    (found,) = read_timings(tmp_path, NETWORK)
    assert (found.t, found.src, found.dst, found.link) == (2, "device/0", "device/1", "d2d")
    assert found.modelled_s == modelled_s(NETWORK, ("device/0", "device/1"), 2, 10**6)
    assert (found.measured_s, found.waited_s) == (4.0, 0.0)
    assert found.comparable
    assert found.to_json()["ratio"] == 4.0 / found.modelled_s


def test_one_that_waits_for_its_receiver_is_not_compared(tmp_path: Path) -> None:
    write(tmp_path, 0, peers(2, sent=[[UP, 0, 0, 1, 10**6, 50.0, 54.0]]))
    write(tmp_path, 1, peers(1, ready=[[UP, 0, 0, 49.0]], device=1),
          peers(2, ready=[[UP, 0, 0, 53.0]], device=1))  # fmt: skip
    (found,) = read_timings(tmp_path, NETWORK)
    assert found.waited_s == pytest.approx(3.0)
    assert not found.comparable
    assert found.to_json()["ratio"] is None
    (summary,) = summaries([found])
    assert (summary.messages, summary.waited, summary.ratio) == (1, 1, None)


def test_messages_over_flower_have_an_overhead(tmp_path: Path) -> None:
    told = {"type": "train.round", "group": "3", "began_s": 10.0, "ended_s": 30.0}
    write(
        tmp_path, 3,
        json.dumps({"kind": "pulled", **told, "bytes": 10**6}),
        json.dumps({"kind": "pushed", **told, "bytes": 2 * 10**6}),
        json.dumps({"kind": "pushed", **told, "bytes": 0}),
    )  # fmt: skip
    down, up = read_timings(tmp_path, NETWORK)
    assert (down.src, down.dst, down.link, down.bytes) == ("edge/1", "device/3", "downlink", 10**6)
    assert (up.src, up.dst, up.link) == ("device/3", "edge/1", "uplink")
    modelled = modelled_s(NETWORK, ("device/3", "edge/1"), 3, 2 * 10**6)
    assert up.overhead_s == pytest.approx(20.0 - modelled)
    assert [s.link for s in summaries([down, up])] == [LinkClass.DOWNLINK, LinkClass.UPLINK]


@pytest.mark.parametrize(
    "line", ["3", '{"a": 1}', '{"kind": "peers"', '{"kind": "peers", "t": 1, "ready": 3}',
             '{"kind": "pushed", "group": 1, "bytes": "x"}', "[" * 100_000, "\x00",
             '{"kind": "peers", "t": 1, "ready": [], "sent": [[2, 0, 0, 99, 1, 0, 1]]}',
             '{"kind": "peers", "t": 1, "ready": [], "sent": [[2, 0, 0, 1, 0, 0, 1]]}',
             '{"kind": "peers", "t": 1, "ready": [], "sent": [[2, 0, 0, 1, 9, NaN, 1]]}',
             '{"kind": "peers", "t": 1, "ready": [], "sent": [[2, 0, 0, 1, 9, 1, -1e308]]}',
             '{"kind": "peers", "t": 1e30, "ready": [], "sent": [[2, 0, 0, 1, 9, 1, 2]]}'],
)  # fmt: skip
def test_a_line_that_is_none_is_left_out(tmp_path: Path, line: str) -> None:
    whole = peers(2, sent=[[UP, 0, 0, 1, 10**6, 50.0, 54.0]])
    write(tmp_path, 0, line, whole)
    assert len(read_timings(tmp_path, NETWORK)) == 1
    write(tmp_path, 0, whole, line)
    assert len(read_timings(tmp_path, NETWORK)) == 1


def test_a_picture_of_them(tmp_path: Path) -> None:
    write(tmp_path, 0, peers(2, sent=[[UP, 0, 0, 1, 10**6, 50.0, 54.0]]))
    drawn = draw_times(read_timings(tmp_path, NETWORK), tmp_path / "a.png", title="one")
    assert drawn.stat().st_size > 5000
