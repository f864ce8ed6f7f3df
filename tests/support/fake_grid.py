"""A Grid that calls the real ClientApp in this process, where the network would stand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Fault = Callable[[int, Message], Message | None]
"""Given device index and message: a reply in the device's place, or None."""

FIRST_NODE = 1000


class FakeGrid(Grid):
    """Devices as in-process calls; messages are iterated twice, as Flower's HTTP grid does.

    Args:
        client_app: The real one.
        devices: How many.
        run_config: Flower's flat run config, the same for all.
        fault: Replaces a device's answer.
        silent: Device indices that never answer.
    """

    def __init__(
        self,
        client_app: ClientApp,
        devices: int,
        run_config: Mapping[str, str | int | float | bool],
        *,
        run_id: int = 1,
        fault: Fault = lambda index, message: None,
        silent: Iterable[int] = (),
    ) -> None:
        TaskIdentity.run_id = run_id
        TaskIdentity.task_id = TaskIdentity.node_id = 1
        self._app = client_app
        self._fault = fault
        self._silent = set(silent)
        self._ids = itertools.count(1)
        self._replies: dict[str, Message] = {}
        self.log: list[tuple[int, str]] = []
        self.contexts = {
            FIRST_NODE + i: Context(
                run_id=run_id,
                node_id=FIRST_NODE + i,
                node_config={"partition-id": i, "num-partitions": devices},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for i in range(devices)
        }

    def set_run(self, run: Run) -> None:
        raise AssertionError("nobody sets the run of a fake grid")

    @property
    def run(self) -> Run:
        raise AssertionError("a fake grid has no run")

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise AssertionError("deprecated in Flower")

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            assert message.metadata.ttl > 0
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        message_id = str(next(self._ids))
        message.metadata.__dict__["_message_id"] = message_id
        node = message.metadata.dst_node_id
        index = node - FIRST_NODE
        self.log.append((index, message.metadata.message_type))
        if index in self._silent:
            return message_id
        reply = self._fault(index, message)
        if reply is None:
            try:
                reply = self._app(message, self.contexts[node])
            except Exception as error:  # what Flower's node runner does
                reply = Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=message)
        self._replies[message_id] = reply
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))
