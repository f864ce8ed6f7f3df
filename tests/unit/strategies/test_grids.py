from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.run import Run

from hffm_flower.errors import Interrupted
from strategies.grids import (
    EDGE_FAILED,
    NO_ANSWER,
    ClusterGrid,
    ClusterRound,
    NestedGrid,
    instruction,
)
from tests.support.memory import Device, MemoryGrid, become_server


def ask(node: int, text: str = "") -> Message:
    become_server()
    content = RecordDict({"config": ConfigRecord({"text": text})})
    return instruction(content, node_id=node, kind="train", t=7, ttl_s=30.0)


def said(message: Message) -> str:
    return str(message.content.config_records["config"]["text"])


def echo(message: Message) -> Message:
    content = RecordDict({"config": ConfigRecord({"text": f"re {said(message)}"})})
    return Message(content, reply_to=message)


def silent(message: Message) -> None:
    return None


def view(devices: dict[int, Device], **options: object) -> ClusterGrid:
    grid = MemoryGrid(devices)
    return ClusterGrid(grid, list(devices), poll_s=0.001, **options)  # type: ignore[arg-type]


def test_an_instruction_names_node_kind_round_and_time_to_live() -> None:
    meta = ask(5).metadata
    assert (meta.dst_node_id, meta.message_type, meta.group_id, meta.ttl) == (5, "train", "7", 30.0)


def test_replies_come_in_the_order_of_asking() -> None:
    grid = view(dict.fromkeys((1, 2, 3), echo))
    replies = list(grid.send_and_receive([ask(3, "c"), ask(1, "a"), ask(2, "b")], timeout=5))
    assert [(r.metadata.src_node_id, said(r)) for r in replies] == [
        (3, "re c"), (1, "re a"), (2, "re b")
    ]  # fmt: skip


def test_late_replies_are_waited_for() -> None:
    class Slow(MemoryGrid):
        looks = 0

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            self.looks += 1
            wanted = list(message_ids)
            return super().pull_messages(wanted[-1:] if self.looks > 3 else [])

    under = Slow(dict.fromkeys((1, 2), echo))
    watched: list[tuple[int, int]] = []
    grid = ClusterGrid(under, [1, 2], poll_s=0.001, watch=lambda *seen: watched.append(seen))
    replies = list(grid.send_and_receive([ask(1, "a"), ask(2, "b")], timeout=5))
    assert [said(r) for r in replies] == ["re a", "re b"]
    assert watched == [(0, 2), (0, 2), (0, 2), (1, 2), (2, 2)]


def test_every_message_has_a_reply_of_its_own_even_two_to_one_node() -> None:
    replies = view({1: echo}).send_and_receive([ask(1, "a"), ask(1, "b")], timeout=5)
    assert [said(r) for r in replies] == ["re a", "re b"]


def test_silence_becomes_that_nodes_error_by_the_deadline() -> None:
    grid = view({1: echo, 2: silent})
    began = time.monotonic()
    good, bad = grid.send_and_receive([ask(1), ask(2)], timeout=0.05)
    assert time.monotonic() - began >= 0.05
    assert not good.has_error()
    assert (bad.error.code, bad.error.reason) == (NO_ANSWER, "no answer within 0.05 s")
    assert bad.metadata.src_node_id == 2


def test_an_error_made_on_the_way_is_put_down_to_the_node_that_was_asked() -> None:
    def lost(message: Message) -> Message:
        reply = Message(Error(13, "message unavailable"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 1  # as Flower's link does
        return reply

    def own(message: Message) -> Message:
        return Message(Error(2, "client app raised"), reply_to=message)

    replies = list(view({5: lost, 6: own}).send_and_receive([ask(5), ask(6)], timeout=5))
    assert [r.metadata.src_node_id for r in replies] == [5, 6]
    assert [r.error.code for r in replies] == [13, 2]
    assert replies[0].error.reason == "message unavailable"


def test_a_message_that_cannot_be_sent_is_that_nodes_error() -> None:
    under = MemoryGrid(dict.fromkeys((1, 2), echo), unsendable=[1])
    bad, good = ClusterGrid(under, [1, 2]).send_and_receive([ask(1), ask(2, "b")], timeout=5)
    assert (bad.metadata.src_node_id, bad.error.code, bad.error.reason) == (
        1, NO_ANSWER, "could not be sent"
    )  # fmt: skip
    assert said(good) == "re b"


def test_nobody_asked_is_nobody_waited_for() -> None:
    assert list(view({1: echo}).send_and_receive([], timeout=None)) == []


def test_stop_ends_the_wait() -> None:
    stop = threading.Event()
    grid = view({1: silent}, stop=stop, watch=lambda done, of: stop.set())
    with pytest.raises(Interrupted, match="stopped on request"):
        grid.send_and_receive([ask(1)], timeout=None)


def test_a_message_to_a_strange_node_is_refused_and_not_sent() -> None:
    under = MemoryGrid(dict.fromkeys((1, 2, 3), echo))
    grid = ClusterGrid(under, [1, 2])
    with pytest.raises(ValueError, match=r"nodes \[3\] are not in this cluster"):
        grid.push_messages([ask(1), ask(3)])
    with pytest.raises(ValueError, match=r"nodes \[3\]"):
        grid.send_and_receive([ask(3)], timeout=1)
    assert under.sent == []


def test_the_view_shows_its_nodes_that_are_online() -> None:
    under = MemoryGrid(dict.fromkeys((1, 3), echo))
    assert list(ClusterGrid(under, [3, 2, 1]).get_node_ids()) == [3, 1]


def test_the_rest_is_the_grids_underneath() -> None:
    grid = view({1: echo})
    with pytest.raises(AssertionError, match="has no run"):
        _ = grid.run
    with pytest.raises(AssertionError, match="sets the run"):
        grid.set_run(Run.create_empty(1))
    with pytest.raises(AssertionError, match="deprecated"):
        grid.create_message()


@dataclass
class Edge:
    """An edge that asks its devices for some rounds, and tells what it heard."""

    nodes: tuple[int, ...]
    rounds: int
    fails_at: int = -1
    deadline_s: float = 0.05
    error: Callable[[], Exception] = lambda: RuntimeError("out of disk")
    heard: list[list[str]] = field(default_factory=list)

    def cluster_round(self, kind: str, content: RecordDict) -> ClusterRound:
        for t in range(self.rounds):
            if t == self.fails_at:
                raise self.error()
            replies = yield [ask(n, f"{t}") for n in self.nodes]
            self.heard.append(
                ["silent" if r.has_error() else f"{r.metadata.src_node_id}:{said(r)}"
                 for r in replies]
            )  # fmt: skip
        text = str(content.config_records["config"]["text"])
        return RecordDict({"config": ConfigRecord({"text": f"re {text}"})})


class Counting(ClusterGrid):
    """Notes what each call to the devices asks of whom."""

    calls: list[tuple[tuple[tuple[int, str], ...], float | None]]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        asked = list(messages)
        now = tuple((m.metadata.dst_node_id, said(m)) for m in asked)
        self.calls.append((now, timeout))
        return super().send_and_receive(asked, timeout=timeout)


def nest(
    edges: dict[int, Edge], devices: dict[int, Device] | None = None
) -> tuple[NestedGrid, Counting]:
    nodes = [n for e in edges.values() for n in e.nodes]
    counting = Counting(MemoryGrid(devices or dict.fromkeys(nodes, echo)), nodes, poll_s=0.001)
    counting.calls = []
    return NestedGrid(counting, edges), counting


def test_all_edges_advance_in_lock_step_one_call_per_edge_round() -> None:
    edges = {1: Edge((10, 11), 2, deadline_s=1), 2: Edge((20,), 2, deadline_s=3)}
    grid, counting = nest(edges)
    replies = list(grid.send_and_receive([ask(2, "y"), ask(1, "x")], timeout=0.001))
    assert [said(r) for r in replies] == ["re y", "re x"]
    assert [sorted(now) for now, _ in counting.calls] == [
        [(10, "0"), (11, "0"), (20, "0")],
        [(10, "1"), (11, "1"), (20, "1")],
    ]
    assert [timeout for _, timeout in counting.calls] == [3, 3], "the edges' deadlines bound it"
    assert edges[1].heard == [["10:re 0", "11:re 0"], ["10:re 1", "11:re 1"]]
    assert edges[2].heard == [["20:re 0"], ["20:re 1"]]


def test_edges_may_have_different_numbers_of_rounds_and_no_devices() -> None:
    edges = {1: Edge((10,), 3), 2: Edge((20,), 1), 3: Edge((), 2), 4: Edge((40,), 0)}
    grid, counting = nest(edges)
    replies = list(grid.send_and_receive([ask(e, str(e)) for e in edges], timeout=None))
    assert [said(r) for r in replies] == ["re 1", "re 2", "re 3", "re 4"]
    assert [now for now, _ in counting.calls] == [
        ((10, "0"), (20, "0")), ((10, "1"),), ((10, "2"),)
    ]  # fmt: skip
    assert edges[3].heard == [[], []]


@pytest.mark.parametrize("fails_at", [0, 1])
def test_an_edge_that_raises_is_an_error_reply_and_the_others_go_on(fails_at: int) -> None:
    edges = {1: Edge((10,), 2, fails_at=fails_at), 2: Edge((20,), 2)}
    grid, counting = nest(edges)
    bad, good = grid.send_and_receive([ask(1), ask(2, "y")], timeout=None)
    assert (bad.metadata.src_node_id, bad.error.code) == (1, EDGE_FAILED)
    assert bad.error.reason == "RuntimeError: out of disk"
    assert said(good) == "re y"
    assert edges[2].heard == [["20:re 0"], ["20:re 1"]]
    assert len(counting.calls) == 2


def test_an_edge_hears_of_its_silent_device_and_the_others_do_not_suffer() -> None:
    edges = {1: Edge((10, 11), 1), 2: Edge((20,), 1)}
    grid, _ = nest(edges, {10: silent, 11: echo, 20: echo})
    list(grid.send_and_receive([ask(1), ask(2)], timeout=None))
    assert edges[1].heard == [["silent", "11:re 0"]]
    assert edges[2].heard == [["20:re 0"]]


def test_an_interruption_is_no_failure_of_an_edge() -> None:
    edges = {1: Edge((10,), 1, fails_at=0, error=lambda: Interrupted("stop"))}
    grid, _ = nest(edges)
    with pytest.raises(Interrupted):
        grid.send_and_receive([ask(1)], timeout=None)


def test_the_nodes_of_a_nested_grid_are_its_edges() -> None:
    grid, _ = nest({1: Edge((10,), 1), 2: Edge((20,), 1)})
    assert list(grid.get_node_ids()) == [1, 2]
