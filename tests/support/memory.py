"""Devices as plain functions, behind a grid in memory: no model, no torch, no network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from hffm_flower.modules import ModularState, ModuleKey, ModuleState
from hffm_flower.records import CONFIG, MASS, MODULES, mass_record, modules_record
from strategies.grids import instruction

A, H, P = map(ModuleKey.parse, ("adapter/a", "head/h", "prompt/p"))
KEYS = (A, H, P)

Device = Callable[[Message], Message | None]
"""What a node answers; None is silence."""

_ids = itertools.count(1)


def become_server() -> None:
    """Take the identity without which Flower makes no message."""
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1


def module(*values: float) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """A module of one tensor ``w``."""
    return {"w": np.array(values, dtype=np.float32)}


def numbered(message: Message) -> Message:
    """Give a message the id that a grid would give it."""
    message.metadata.__dict__["_message_id"] = f"m{next(_ids)}"
    return message


def question(
    node: int = 1, kind: str = "train", t: int = 1, content: RecordDict | None = None
) -> Message:
    """A message to a node, as a grid would have sent it."""
    become_server()
    return numbered(instruction(content or RecordDict(), node_id=node, kind=kind, t=t, ttl_s=60.0))


def cluster_message(
    kind: str, first: int, last: int, modules: ModularState, *, node: int = 1
) -> Message:
    """What the cloud sends to an edge."""
    config = ConfigRecord({"first": first, "last": last})
    content = RecordDict({MODULES: modules_record(modules), CONFIG: config})
    return question(node, kind, last, content)


def trained(
    message: Message,
    state: ModularState,
    mass: Mapping[ModuleKey, float] | float,
    *,
    loss: float = 0.0,
    examples: int = 0,
) -> Message:
    """A device's reply to ``train``."""
    masses = mass if isinstance(mass, Mapping) else dict.fromkeys(state, mass)
    content = RecordDict(
        {
            MODULES: modules_record(state),
            MASS: mass_record(masses),
            "metrics": MetricRecord({"loss": loss, "examples": examples}),
        }
    )
    return Message(content, reply_to=message)


def scored(message: Message, scores: Mapping[str, tuple[int, int, float]]) -> Message:
    """A device's reply to ``evaluate``: ``split/task`` -> correct, total, value."""
    record = MetricRecord({name: [float(v) for v in values] for name, values in scores.items()})
    return Message(RecordDict({"scores": record}), reply_to=message)


def same(one: ModuleState, other: ModuleState) -> bool:
    """Whether two modules hold the same bits."""
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


class MemoryGrid(Grid):
    """Grid over functions.

    Args:
        devices: Node id -> what it answers.
        unsendable: Nodes for which the grid gives no message id, as Flower's simulation does.
    """

    def __init__(self, devices: Mapping[int, Device], *, unsendable: Collection[int] = ()) -> None:
        become_server()
        self.devices = dict(devices)
        self.unsendable = unsendable
        self.sent: list[Message] = []
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        raise AssertionError("nobody sets the run of a grid in memory")

    @property
    def run(self) -> Run:
        raise AssertionError("a grid in memory has no run")

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise AssertionError("deprecated in Flower")

    def get_node_ids(self) -> Iterable[int]:
        return list(self.devices)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node in self.unsendable:
                continue
            self.sent.append(numbered(message))
            ids.append(message.metadata.message_id)
            reply = self.devices[node](message)
            if reply is not None:
                self._replies[message.metadata.message_id] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))
