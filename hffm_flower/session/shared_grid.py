"""One session of actors for several runs, and no work done twice.

`SessionGrid` stands where the network stands: it marks every message with the run it
belongs to, so that the actors answer for the right one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Iterable
from typing import Final

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import Grid

from hffm_flower.config import RunConfig
from hffm_flower.records import CONFIG, number
from hffm_flower.schedule import METHODS
from strategies.grid_view import GridView

SESSION: Final = "session"
"""Config record that says which run of the session a message belongs to."""
KEPT_BYTES: Final = 2**30
"""Replies are kept up to this size in all."""


class Answers:
    """Replies of devices, by what they were asked.

    A device's answer follows from its settings, its data and the message alone. Where two
    runs ask the same device the same thing, bit by bit, the second takes the first's answer:
    that is so in the identical first rounds of two methods, and nowhere else.
    """

    def __init__(self) -> None:
        self._replies: dict[str, RecordDict] = {}
        self._bytes = 0

    def get(self, question: str) -> RecordDict | None:
        """The answer, if it was given before."""
        return self._replies.get(question)

    def put(self, question: str, reply: RecordDict) -> None:
        """Keep an answer, as long as there is room."""
        size = recorddict_to_proto(reply).ByteSize()
        if question not in self._replies and self._bytes + size <= KEPT_BYTES:
            self._replies[question] = reply
            self._bytes += size


class SessionGrid(GridView):
    """One run's view of a session.

    Args:
        grid: Grid of the session.
        run: Place of the run in the session.
        twin: What runs have in common that give the same answers, e.g. the seed; empty: this
            run shares nothing.
        until: Last edge round in which two runs can still be alike.
        answers: Shared by the runs of a session.
    """

    def __init__(
        self, grid: Grid, run: int, *, answers: Answers, twin: str = "", until: int = 0
    ) -> None:
        super().__init__(grid)
        self._place, self._twin, self._until = run, twin, until
        self._answers = answers
        self._asked: dict[str, str] = {}
        self._ready: dict[str, Message] = {}
        self._count = itertools.count()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send what was not answered before; a message that is refused has an empty id."""
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        question = self._question(message)
        known = self._answers.get(question) if question else None
        if known is not None:
            name = f"known-{next(self._count)}"
            message.metadata.__dict__["_message_id"] = name
            self._ready[name] = Message(known, reply_to=message)
            return name
        message.content[SESSION] = ConfigRecord({"run": self._place})
        name = next(iter(self._grid.push_messages([message])), "")
        if not name:  # such as one whose time to live is over already
            return ""
        self._asked[name] = question
        return name

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that have come, and those that were known."""
        asked: Collection[str] = list(message_ids)
        found = [self._ready.pop(name) for name in asked if name in self._ready]
        open_ = [name for name in asked if not name.startswith("known-")]
        for reply in self._grid.pull_messages(open_) if open_ else []:
            question = self._asked.pop(reply.metadata.reply_to_message_id, "")
            if question and reply.has_content():
                self._answers.put(question, reply.content)
            found.append(reply)
        return found

    def _question(self, message: Message) -> str:
        """Digest of device and question; empty if its answer is not to be shared."""
        kind = message.metadata.message_type
        if not self._twin or kind not in ("train", "evaluate"):
            return ""
        if int(message.metadata.group_id) > self._until:
            return ""
        if number(message.content, CONFIG, "segments", default=1) > 1:
            return ""  # what is left of a segment lies on the device, for this run alone
        data: bytes = recorddict_to_proto(message.content).SerializeToString(deterministic=True)
        asked = f"{self._twin} {message.metadata.dst_node_id} {kind} "
        return asked + hashlib.blake2b(data, digest_size=16).hexdigest()


ELSEWHERE: Final = ("method", "tree.period", "server.modules", "d2d.plan")
"""Settings that reach devices in messages alone."""


def twin_of(config: RunConfig) -> str:
    """What a run's answers follow from beside the messages, within one comparison.

    A run in which modules stay on their device shares nothing: its devices remember. Which of
    its factors alternated LoRA trains depends on the schedule, too.
    """
    rule = config.server.lora_rule
    if METHODS[config.method].policy == "*=device" or "=device" in config.server.modules:
        return ""
    if rule == "lora-share-a" and config.has_lora:
        return ""
    told = () if rule == "lora-alternate" else ELSEWHERE
    own = {
        key: value for key, value in sorted(config.to_flwr().items())
        if key not in told and not key.startswith("paths.")
    }  # fmt: skip
    digest = hashlib.blake2b(json.dumps(own).encode(), digest_size=16).hexdigest()
    return f"settings {digest}"
