"""The gateway answers a question once, and never a question with the answer to another."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from flwr.app import ConfigRecord, RecordDict

from hffm_flower.errors import ConfigError, ModuleError, ProtocolError
from hffm_flower.rpc.gateway import EdgeGateway, Question, Superseded, ask

LAST = "query.end"


def question(text: str, *, kind: str = "query.init", run: int = 7, t: int = 0) -> Question:
    return Question(run, kind, t, RecordDict({"config": ConfigRecord({"text": text})}))


class Edge:
    """Answers with what it was asked, and how often it was asked anything."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.gateway = EdgeGateway("127.0.0.1:0", None)
        self.address = f"127.0.0.1:{self.gateway.port}"
        self.stop = threading.Event()

    def answer(self, asked: Question) -> RecordDict:
        text = str(asked.content.config_records["config"]["text"])
        self.heard.append(text)
        if text == "too much":
            raise Superseded("another run")
        if text == "nonsense":
            raise ModuleError("no such module")
        return RecordDict({"config": ConfigRecord({"text": f"{text} {len(self.heard)}"})})

    def ask(self, asked: Question, *, deadline_s: float = 5.0) -> str:
        reply = ask(self.address, asked, credentials=None, deadline_s=deadline_s)
        return str(reply.config_records["config"]["text"])


@pytest.fixture
def edge() -> Iterator[Edge]:
    made = Edge()
    with made.gateway, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(
            made.gateway.serve, made.answer, last=LAST, stop=made.stop, silence_s=20.0
        )
        yield made
        if not serving.done():
            made.ask(question("end", kind=LAST))
        serving.result(timeout=10)


def test_the_same_question_is_played_once(edge: Edge) -> None:
    assert edge.ask(question("a")) == edge.ask(question("a")) == "a 1"
    assert edge.heard == ["a"]


def test_another_question_of_the_same_kind_and_round_has_its_own_answer(edge: Edge) -> None:
    assert [edge.ask(question(text)) for text in ("a", "b")] == ["a 1", "b 2"]
    assert edge.ask(question("b", t=1)) == "b 3"
    assert edge.ask(question("b", run=8, t=1)) == "b 4"


def test_a_refusal_says_why_and_the_service_goes_on(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ProtocolError, match="ModuleError: no such module"):
        edge.ask(question("nonsense"))
    assert edge.ask(question("a")) == "a 2"
    assert "query.init of edge round 0 failed: ModuleError: no such module" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_refused_last_question_does_not_end_the_service(edge: Edge) -> None:
    with pytest.raises(ProtocolError, match="no such module"):
        edge.ask(question("nonsense", kind=LAST))
    assert edge.ask(question("a")) == "a 2"


def test_refused_questions_are_silence() -> None:
    edge = Edge()
    with edge.gateway, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(
            edge.gateway.serve, edge.answer, last=LAST, stop=edge.stop, silence_s=0.8
        )
        while not serving.done():
            with pytest.raises(ProtocolError):
                edge.ask(question("nonsense", t=len(edge.heard)), deadline_s=0.6)
            time.sleep(0.6)
            assert len(edge.heard) < 20
        with pytest.raises(ProtocolError, match=r"silent for 0\.8 s"):
            serving.result()


def test_a_question_of_the_next_run_is_answered_by_the_next_service() -> None:
    first = Edge()
    with ThreadPoolExecutor(2) as pool:
        with first.gateway:
            serving = pool.submit(
                first.gateway.serve, first.answer, last=LAST, stop=first.stop, silence_s=20.0
            )
            asking = pool.submit(first.ask, question("too much"), deadline_s=20.0)
            with pytest.raises(Superseded):
                serving.result(timeout=10)
        with EdgeGateway(first.address, None) as second:
            serving = pool.submit(
                second.serve, lambda asked: asked.content, last="query.init", stop=first.stop,
                silence_s=20.0,
            )  # fmt: skip
            assert asking.result(timeout=20) == "too much"
            serving.result(timeout=10)
    assert first.heard == ["too much"]


def test_who_has_given_up_is_not_played() -> None:
    edge = Edge()
    with edge.gateway, ThreadPoolExecutor(1) as pool:
        with pytest.raises(ProtocolError, match="DEADLINE_EXCEEDED"):
            edge.ask(question("late"), deadline_s=0.3)
        time.sleep(1.0)  # the server hears of it a moment after the caller
        serving = pool.submit(
            edge.gateway.serve, edge.answer, last=LAST, stop=edge.stop, silence_s=20.0
        )
        edge.ask(question("end", kind=LAST))
        serving.result(timeout=10)
    assert edge.heard == ["end"]


def test_nobody_there_ends_by_the_deadline() -> None:
    with pytest.raises(ProtocolError, match=r"gateway at 127\.0\.0\.1:1"):
        ask("127.0.0.1:1", question("a"), credentials=None, deadline_s=0.3)


def test_a_silent_cloud_ends_the_service() -> None:
    with EdgeGateway("127.0.0.1:0", None) as gateway, pytest.raises(ProtocolError, match="silent"):
        gateway.serve(lambda asked: RecordDict(), last=LAST, stop=threading.Event(), silence_s=0.1)


def test_an_address_in_use_is_named(edge: Edge) -> None:
    with pytest.raises(ConfigError, match=edge.address):
        EdgeGateway(edge.address, None)
