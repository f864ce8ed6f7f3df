"""`hffm up` with D2D: the bits of `hffm run`, with nodes of either kind; deaths of heads."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hffm_flower.ledger import LinkClass, Phase, Transfer, from_line
from tests.support.up import Up, bits, set_words, simulate

ROUNDS = 4
WORDS = [
    "--devices", "4", "--edges", "2", "--rounds", str(ROUNDS), "--seed", "2",
    *set_words({
        "data.tasks": "watch7 easyvqa10",
        "data.train-per-answer": 6,
        "data.test-per-answer": 3,
        "data.full-modality-share": 1.0,
        "model.backbone": "small",
        "train.local-epochs": 1,
        "server.deadline-s": 300.0,
    }),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("simulated")


@functools.cache
def simulated(folder: Path, plan: str) -> Path:
    return simulate(folder / plan, *WORDS, "--d2d", plan)


@pytest.fixture
def up(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Up]:
    started = Up(tmp_path, *WORDS, *request.param)
    yield started
    started.end()


def among_peers(run: Path) -> list[Transfer]:
    lines = (run / "ledger.jsonl").read_text().splitlines()
    rows = [row for line in lines for row in from_line(line)[1]]
    return [row for row in rows if row.link == LinkClass.D2D and row.bytes]  # 0: tries in vain


CASES = [
    (("--d2d", "relay"), ()),
    (("--d2d", "relay", "--stock-nodes"), (pytest.mark.slow,)),
    (("--d2d", "gossip"), (pytest.mark.slow,)),
    (("--d2d", "gossip", "--stock-nodes"), (pytest.mark.slow,)),
    (("--d2d", "cooperative"), (pytest.mark.slow,)),
    (("--d2d", "cooperative", "--stock-nodes"), (pytest.mark.slow,)),
]


@pytest.mark.parametrize(
    "up", [pytest.param(w, marks=m) for w, m in CASES], indirect=True, ids=" ".join
)
def test_same_bits_and_messages_as_hffm_run(
    up: Up, folder: Path, request: pytest.FixtureRequest
) -> None:
    plan = request.node.callspec.params["up"][1]
    assert up.wait() == 0, up.said.read_text() + up.log()
    up.nothing_is_left()
    there = simulated(folder, plan)
    assert bits(up.run) == bits(there)
    mine, theirs = among_peers(up.run), among_peers(there)
    assert {(r.t, r.phase, r.src, r.dst, r.bytes) for r in mine} == {
        (r.t, r.phase, r.src, r.dst, r.bytes) for r in theirs
    }
    assert {r.t for r in mine} == set(range(1, ROUNDS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("up", [("--d2d", "relay")], indirect=True, ids=" ".join)
def test_the_head_of_a_relay_tree_is_killed_in_mid_round(up: Up, folder: Path) -> None:
    heads = [
        row.dst for row in among_peers(simulated(folder, "relay"))
        if row.t == 2 and row.phase == Phase.EXCHANGE
    ]  # fmt: skip
    up.until("rounds.jsonl", '"t":1')
    head = heads[0].replace("/", "-")
    up.kill(head)
    assert up.wait() == 0, up.said.read_text() + up.log()
    rounds = [json.loads(line) for line in (up.run / "rounds.jsonl").read_text().splitlines()]
    assert [r["t"] for r in rounds] == list(range(1, ROUNDS + 1))
    assert f"{head} died (code -9)" in up.log()
    up.nothing_is_left()
