"""The loop of a long-lived node, over a link that does what the test says."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.link import LinkLost, Refused, RunOver
from clients.runner import KEPT_RUNS, NodeRunner, Pace
from hffm_flower.errors import ConfigError, ProtocolError
from tests.support.nodes import NODE, QUICK, Counter, FakeLink, counts, question, serve


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


def test_answers_with_what_the_app_is_told(stop: threading.Event) -> None:
    counter, link = Counter(), FakeLink(stop, [None, question(5)])
    serve(link, stop=stop, app=counter.app)
    (context,) = counter.contexts
    assert (context.run_id, context.node_id) == (5, NODE)
    assert context.node_config == {"partition-id": 3}
    assert context.run_config == {"seed": 5}
    (reply,) = link.sent
    assert reply.metadata.reply_to_message_id == "question of run 5"
    assert reply.metadata.src_node_id == NODE
    assert link.left == [True]


def test_state_is_kept_per_run_and_shared_in_a_series(stop: threading.Event) -> None:
    counter = Counter()
    runs = [1, 1, 2, 1, 11, 2]
    link = FakeLink(stop, [question(r) for r in runs], series=lambda run_id: run_id % 10)
    serve(link, stop=stop, app=counter.app)
    assert counts(link) == [1, 2, 1, 3, 4, 2]
    assert link.asked_for == [1, 2, 11]


def test_of_old_runs_nothing_is_kept(stop: threading.Event) -> None:
    runs = [*range(KEPT_RUNS + 1), 0]
    link = FakeLink(stop, [question(r) for r in runs])
    serve(link, stop=stop, app=Counter().app)
    assert counts(link) == [1] * len(runs)
    assert link.asked_for == runs


class Odd(ClientApp):
    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act = act

    def __call__(self, message: Message, context: Context) -> Message:
        return cast(Message, self.act())  # which it need not be


def fail(error: BaseException) -> Callable[[], object]:
    def act() -> object:
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (fail(ValueError("too odd")), "ValueError: too odd"),
        (fail(SystemExit(3)), "SystemExit: 3"),
        (lambda: "text", "TypeError: the ClientApp returned str, not a Message"),
    ],
)
def test_an_app_that_fails_answers_with_code_2(
    act: Callable[[], object], reason: str, stop: threading.Event
) -> None:
    link = FakeLink(stop, [question(), question()])
    serve(link, stop=stop, app=Odd(act))
    assert [(r.error.code, r.error.reason) for r in link.sent] == [(2, reason)] * 2
    assert link.sent[0].metadata.reply_to_message_id == "question of run 1"


def test_only_the_unforeseen_is_logged_with_its_traceback(
    stop: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    serve(FakeLink(stop, [question()]), stop=stop, app=Odd(fail(ProtocolError("not ours"))))
    assert "the ClientApp raised ProtocolError: not ours" in caplog.text
    assert "Traceback" not in caplog.text
    stop.clear()
    serve(FakeLink(stop, [question()]), stop=stop, app=Odd(fail(ValueError("too odd"))))
    assert "Traceback" in caplog.text


def test_a_bundle_that_cannot_be_read_is_answered_with_code_2(stop: threading.Event) -> None:
    def bad(run_id: int) -> int:
        raise ValueError("no pyproject.toml")

    link = FakeLink(stop, [question()], series=bad)
    serve(link, stop=stop, app=Counter().app)
    assert [(r.error.code, r.error.reason) for r in link.sent] == [
        (2, "ValueError: no pyproject.toml")
    ]


def test_ctrl_c_in_the_app_leaves_and_ends(stop: threading.Event) -> None:
    link = FakeLink(stop, [question()])
    with pytest.raises(KeyboardInterrupt):
        serve(link, stop=stop, app=Odd(fail(KeyboardInterrupt())))
    assert (link.sent, link.left) == ([], [True])


def test_a_message_past_its_time_is_left(stop: threading.Event) -> None:
    counter, link = Counter(), FakeLink(stop, [question(age_s=61), question(2)])
    serve(link, stop=stop, app=counter.app)
    assert [c.run_id for c in counter.contexts] == [2]
    assert len(link.sent) == 1


def test_an_answer_past_its_time_is_left(
    stop: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    message = question(ttl_s=0.05)

    def slow() -> Message:
        time.sleep(0.1)
        return Message(RecordDict(), reply_to=message)

    link = FakeLink(stop, [message])
    with caplog.at_level(logging.WARNING):
        serve(link, stop=stop, app=Odd(slow))
    assert link.sent == []
    assert "an answer is left: it is 0." in caplog.text


def test_a_lost_link_is_made_anew_with_longer_pauses(
    stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(stop, "wait", pauses.append)
    monkeypatch.setattr("random.uniform", lambda low, high: 1.0)
    lost = FakeLink(stop, [LinkLost("cut")])
    served = FakeLink(stop, [None, LinkLost("cut again")])
    last = FakeLink(stop, [question()])
    away = LinkLost("nobody there")
    serve(away, away, lost, away, served, last, stop=stop, app=Counter().app)
    assert pauses == [0.001, 0.002, 0.004, 0.004, 0.001, 0.001, 0.001]
    assert (lost.left, served.left, last.left) == ([False], [False], [True])
    assert len(last.sent) == 1


def test_an_answer_that_could_not_be_sent_is_sent_over_the_next_link(
    stop: threading.Event,
) -> None:
    counter = Counter()
    cut, again = LinkLost("cut"), LinkLost("cut again")
    links = [FakeLink(stop, [question()], [cut]), FakeLink(stop, [], [again]), FakeLink(stop, [])]
    serve(*links, stop=stop, app=counter.app)
    assert len(counter.contexts) == 1
    assert [len(link.sent) for link in links] == [0, 0, 1]


@pytest.mark.parametrize("problem", [RunOver("ended"), Refused("who are you?")])
def test_an_answer_that_nobody_wants_is_left(problem: Exception, stop: threading.Event) -> None:
    links = [FakeLink(stop, [question()], [problem])]
    if isinstance(problem, Refused):
        links.append(FakeLink(stop, []))
    serve(*links, stop=stop, app=Counter().app)
    assert [link.sent for link in links] == [[]] * len(links)
    assert [link.left for link in links] == [[False], [True]][-len(links) :]


def test_an_answer_is_not_sent_as_another_node(stop: threading.Event) -> None:
    first = FakeLink(stop, [question()], [LinkLost("cut")])
    second = FakeLink(stop, [question(2)], node_id=NODE + 1)
    counter = Counter()
    serve(first, second, stop=stop, app=counter.app)
    assert [c.node_id for c in counter.contexts] == [NODE, NODE + 1]
    assert second.sent == []  # the question was to node 7 as well


def test_a_run_that_ended_meanwhile_is_no_reason_to_go(stop: threading.Event) -> None:
    link = FakeLink(stop, [RunOver("ended"), question()])
    serve(link, stop=stop, app=Counter().app)
    assert len(link.sent) == 1


def test_what_waiting_does_not_mend_ends_the_node(stop: threading.Event) -> None:
    with pytest.raises(ConfigError, match="not trusted"):
        serve(ConfigError("not trusted"), stop=stop, app=Counter().app)


def test_an_idle_node_looks_less_often(
    stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, waits = [100.0], []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(stop, "wait", wait)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    link = FakeLink(stop, [None] * 80 + [question()])
    NodeRunner(lambda: link, Counter().app, {}, pace=Pace()).run(stop)
    assert waits[:10] == [0.2] * 10
    assert max(waits) == pytest.approx(1.0)
    assert sorted(waits[:-1]) == waits[:-1]
    assert waits[-1] == 0.2  # quick again after a message


def test_a_file_is_there_while_the_superlink_knows_the_node(
    stop: threading.Event, tmp_path: Path
) -> None:
    online, seen = tmp_path / "online", []

    class Watched(FakeLink):
        def receive(self) -> Message | None:
            seen.append(online.exists())
            return super().receive()

    links = [Watched(stop, [LinkLost("away")]), Watched(stop, [None])]

    def connect() -> FakeLink:
        seen.append(online.exists())
        return links.pop(0)

    online.touch()  # left by a process that was killed
    NodeRunner(connect, Counter().app, {}, pace=QUICK, online=online).run(stop)
    assert seen == [False, True, False, True, True]
    assert not online.exists()
