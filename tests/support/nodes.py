"""A link that does what a test says, and the loop of a node over it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.link import RunFacts
from clients.runner import NodeRunner, Pace
from tests.support.fake_grid import FakeGrid

NODE = 7


QUICK = Pace(0.001, 0.001, 0.001, 0.004)


class FakeLink:
    """Hands out messages; whatever is an exception is raised in its place.

    Args:
        incoming: What `receive` gives, one after another; then ``stop`` is set.
        sending: What `send` raises, one after another; None: nothing.
    """

    def __init__(
        self,
        stop: threading.Event,
        incoming: Sequence[Message | BaseException | None],
        sending: Sequence[BaseException | None] = (),
        *,
        node_id: int = NODE,
        series: Callable[[int], int] = lambda run_id: run_id,
    ) -> None:
        self._stop, self._incoming, self._sending = stop, list(incoming), list(sending)
        self.node_id, self._series = node_id, series
        self.sent: list[Message] = []
        self.asked_for: list[int] = []
        self.left: list[bool] = []

    def receive(self) -> Message | None:
        if not self._incoming:
            self._stop.set()
            return None
        item = self._incoming.pop(0)
        if isinstance(item, BaseException):
            raise item
        return item

    def run_facts(self, run_id: int) -> RunFacts:
        self.asked_for.append(run_id)
        return RunFacts({"seed": run_id}, self._series(run_id))

    def send(self, reply: Message, app_seconds: float) -> None:
        assert app_seconds >= 0
        if self._sending and (problem := self._sending.pop(0)):
            raise problem
        self.sent.append(reply)

    def close(self, *, leave: bool) -> None:
        self.left.append(leave)


def question(run_id: int = 1, *, age_s: float = 0.0, ttl_s: float = 60.0) -> Message:
    FakeGrid(ClientApp(), 0, {}, run_id=run_id)  # sets the identity that messages carry
    message = Message(RecordDict(), NODE, "train", ttl=ttl_s, group_id="3")
    message.metadata.__dict__["_message_id"] = f"question of run {run_id}"
    message.metadata.created_at -= age_s
    return message


class Counter:
    """An app that counts its calls in ``context.state`` and notes the contexts."""

    def __init__(self) -> None:
        self.contexts: list[Context] = []
        self.app = ClientApp()
        self.app.train()(self.train)

    def train(self, message: Message, context: Context) -> Message:
        self.contexts.append(context)
        before = context.state.metric_records.get("calls", MetricRecord({"n": 0}))["n"]
        assert isinstance(before, int)
        context.state["calls"] = MetricRecord({"n": before + 1})
        content = RecordDict({"calls": MetricRecord({"n": before + 1})})
        return Message(content, reply_to=message)


def counts(link: FakeLink) -> list[object]:
    return [reply.content.metric_records["calls"]["n"] for reply in link.sent]


def serve(*links: FakeLink | Exception, stop: threading.Event, app: ClientApp) -> None:
    made = iter(links)

    def connect() -> FakeLink:
        link = next(made)
        if isinstance(link, Exception):
            raise link
        return link

    NodeRunner(connect, app, {"partition-id": 3}, pace=QUICK).run(stop)
    assert list(made) == [], "links that nobody made"
