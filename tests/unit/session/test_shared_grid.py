"""One session for several runs: equal questions are asked once, others never."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from hffm_flower.config import RunConfig
from hffm_flower.modules import ModularState
from hffm_flower.records import CONFIG, MODULES, modules_of, modules_record, to_bytes
from hffm_flower.runfiles import RunFiles
from hffm_flower.session import shared_grid
from hffm_flower.session.shared_grid import SESSION, Answers, SessionGrid, twin_of
from strategies.federate import federate
from strategies.grids import ClusterGrid, instruction
from tests.support.fake_grid import FakeGrid
from tests.support.memory import A, MemoryGrid, module, trained
from tests.support.played import RecordingApp

STATE: ModularState = {A: module(1, 2)}


def ask(
    node: int = 1, kind: str = "train", t: int = 1, value: float = 1.0, **words: int
) -> Message:
    content = RecordDict(
        {MODULES: modules_record({A: module(value)}), CONFIG: ConfigRecord({"t": t, **words})}
    )
    return instruction(content, node_id=node, kind=kind, t=t, ttl_s=60.0)


def answer(message: Message) -> Message:
    got = modules_of(message.content)
    return trained(message, {k: {n: 2 * a for n, a in s.items()} for k, s in got.items()}, 3.0)


@pytest.fixture
def grid() -> MemoryGrid:
    return MemoryGrid({1: answer, 2: answer})


def send(view: SessionGrid, *messages: Message) -> list[Message]:
    ids = list(view.push_messages(messages))
    replies = {r.metadata.reply_to_message_id: r for r in view.pull_messages(ids)}
    assert view.pull_messages(ids) == []
    return [replies[name] for name in ids]


def test_an_equal_question_is_answered_once(grid: MemoryGrid) -> None:
    answers = Answers()
    first, second = (SessionGrid(grid, n, twin="seed 1", until=9, answers=answers) for n in (0, 1))
    (one,), (other,) = send(first, ask()), send(second, ask())
    assert len(grid.sent) == 1
    assert to_bytes(modules_of(one.content)) == to_bytes(modules_of(other.content))
    assert other.metadata.src_node_id == 1
    assert other.metadata.message_type == "train"


@pytest.mark.parametrize(
    "other",
    [
        {"t": 2},
        {"node": 2},
        {"value": 1.0000001},
        {"kind": "evaluate"},
        {"segment": 0, "segments": 1},
    ],
)
def test_another_question_is_asked(grid: MemoryGrid, other: dict[str, Any]) -> None:
    answers = Answers()
    first, second = (SessionGrid(grid, n, twin="seed 1", until=9, answers=answers) for n in (0, 1))
    send(first, ask())
    send(second, ask(**other))
    assert len(grid.sent) == 2


def test_a_message_that_flower_refuses_has_no_answer() -> None:
    under = MemoryGrid({1: answer, 2: answer}, unsendable=[1])
    view = ClusterGrid(SessionGrid(under, 0, answers=Answers()), [1, 2])
    refused, good = view.send_and_receive([ask(1), ask(2)], timeout=5)
    assert (refused.metadata.src_node_id, refused.error.reason) == (1, "could not be sent")
    assert good.has_content()


def test_runs_of_other_seeds_share_nothing(grid: MemoryGrid) -> None:
    answers = Answers()
    for n, twin in enumerate(("seed 1", "seed 2", "", "")):
        send(SessionGrid(grid, n, twin=twin, until=9, answers=answers), ask())
    assert len(grid.sent) == 4


@pytest.mark.parametrize("kind", ["query.profile", "query.init", "query.upload"])
def test_only_training_and_evaluating_are_shared(grid: MemoryGrid, kind: str) -> None:
    answers = Answers()
    for n in (0, 1):
        send(SessionGrid(grid, n, twin="seed 1", until=9, answers=answers), ask(kind=kind))
    assert len(grid.sent) == 2


def test_training_in_segments_is_not_shared(grid: MemoryGrid) -> None:
    """What a segment leaves lies on the device, for the run that asked."""
    answers = Answers()
    for n in (0, 1):
        send(
            SessionGrid(grid, n, twin="seed 1", until=9, answers=answers),
            ask(segment=0, segments=2),
        )
    assert len(grid.sent) == 2


def test_every_message_says_which_run_it_is_of(grid: MemoryGrid) -> None:
    answers = Answers()
    for n in (0, 5):
        send(SessionGrid(grid, n, answers=answers), ask(), ask(node=2))
    assert [m.content.config_records[SESSION]["run"] for m in grid.sent] == [0, 0, 5, 5]


def test_an_error_is_no_answer() -> None:
    asked: list[Message] = []

    def fail_first(message: Message) -> Message:
        asked.append(message)
        if len(asked) == 1:
            return Message(Error(2, "out of order"), reply_to=message)
        return answer(message)

    grid, answers = MemoryGrid({1: fail_first}), Answers()
    views = [SessionGrid(grid, n, twin="seed 1", until=9, answers=answers) for n in range(3)]
    assert [send(view, ask())[0].has_error() for view in views] == [True, False, False]
    assert len(asked) == 2


def test_answers_are_kept_while_there_is_room(
    grid: MemoryGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Answers()
    send(SessionGrid(grid, 0, twin="seed 1", until=9, answers=answers), ask())
    monkeypatch.setattr(shared_grid, "KEPT_BYTES", 1)
    for n in (1, 2):
        send(SessionGrid(grid, n, twin="seed 1", until=9, answers=answers), ask(), ask(t=2))
    assert len(grid.sent) == 3  # the old one is known, the new one is asked each time


@pytest.mark.parametrize(
    ("method", "policy", "shares"),
    [
        ("edge-only", "", True),
        ("h-fedfm", "head/*=edge", True),
        ("star", "", True),
        ("h-fedfm", "head/*=device", False),
        ("local", "", False),
        ("local", "head/*=cloud:2", False),
    ],
)
def test_who_remembers_shares_nothing(method: str, policy: str, shares: bool) -> None:
    base = RunConfig().with_values(seed=3)
    made = base.with_values(method=method, server__modules=policy)
    assert bool(twin_of(made)) == shares
    if shares:
        assert twin_of(made) == twin_of(base.with_values(method="edge-only"))
        assert twin_of(made) != twin_of(made.with_values(seed=4))


@pytest.mark.parametrize(
    "changes",
    [
        {"model__adapter": "lora"},
        {"model__lora_ranks": [4]},
        {"model__prompts": "task=4"},
        {"train__learning_rate": 0.1},
        {"train__device": "cuda"},
        {"server__lora_rule": "lora-ffa"},
        {"tree__memory_mib": "1 2"},
    ],
)
def test_runs_of_other_settings_share_nothing(changes: dict[str, object]) -> None:
    one = RunConfig()
    assert twin_of(one) == twin_of(one.with_values(paths__state="elsewhere", tree__period=4)) != ""
    assert twin_of(one.with_values(**changes)) != twin_of(one)


def test_what_lora_trains_may_hang_on_schedule_and_device() -> None:
    one = RunConfig().with_values(model__adapter="lora", server__lora_rule="lora-alternate")
    assert twin_of(one) != twin_of(one.with_values(tree__period=4))
    assert twin_of(one.with_values(server__lora_rule="lora-share-a")) == ""


def session(
    runs: Sequence[RunConfig], root: Path, *, shared: bool
) -> tuple[list[RunFiles], list[int]]:
    """Runs one after the other, as a session does it; and how often devices trained in each."""
    answers, found, trainings = Answers(), [], []
    for place, config in enumerate(runs):
        app = RecordingApp()
        grid = FakeGrid(app, config.tree.devices, config.to_flwr())
        twin = twin_of(config) if shared else ""
        files = RunFiles.create(root / str(place))
        federate(SessionGrid(grid, place, twin=twin, until=9, answers=answers), config, files)
        found.append(files)
        trainings.append(len(app.of("train")))
    return found, trainings


def test_sharing_changes_no_bit_of_a_run(tiny: RunConfig, tmp_path: Path) -> None:
    methods = [
        ("edge-only", 1, "none"), ("h-fedfm", 1, "none"), ("h-fedfm", 2, "relay"),
        ("edge-only", 1, "cooperative"), ("h-fedfm", 2, "none"), ("star", 1, "none"),
    ]  # fmt: skip
    runs = [
        tiny.with_values(method=method, tree__period=period, d2d__plan=plan,
                         paths__state=str(tmp_path / f"state{n}"))
        for n, (method, period, plan) in enumerate(methods)
    ]  # fmt: skip
    alone, asked = session(runs, tmp_path / "alone", shared=False)
    together, shared = session(runs, tmp_path / "together", shared=True)
    assert asked == [10, 10, 10, 20, 10, 10]
    # The first round is the same for all but those whose devices exchange; with a period of 2
    # the second is that of edge-only.
    assert shared == [10, 5, 10, 20, 0, 5]
    for one, other in zip(alone, together, strict=True):
        for path in sorted(one.root.rglob("*.safetensors")):
            assert path.read_bytes() == (other.root / path.relative_to(one.root)).read_bytes()
        assert one.transfers() == other.transfers()
        assert one.result()["summary"] == other.result()["summary"]
