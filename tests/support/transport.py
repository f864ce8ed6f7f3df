"""What the transports of a run really moved, to hold against its ledger."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import pytest
from flwr.app import Message, RecordDict
from flwr.common.serde import recorddict_to_proto

from hffm_flower.ledger import LinkClass, Phase, Transfer, traffic
from hffm_flower.modules import ModularState
from strategies.edge import EdgeStrategy
from strategies.grids import ClusterRound, NestedGrid
from tests.support.played import Played

KINDS = {
    "query.profile": (Phase.SETUP, Phase.SETUP),
    "query.init": (Phase.SETUP, Phase.SETUP),
    "train": (Phase.DOWN, Phase.UP),
    "query.upload": (Phase.ASK, Phase.REPAIR),
    "evaluate": (Phase.EVALUATE, Phase.EVALUATE),
    "train.cluster": (Phase.DISPATCH, Phase.COLLECT),
    "evaluate.cluster": (Phase.PUBLISH, Phase.EVALUATE),
}
Sums = dict[tuple[int, Phase], int]
"""Edge round and phase -> bytes."""


def weight(content: RecordDict) -> int:
    """Size of a message as it is serialised [byte]."""
    return int(recorddict_to_proto(content).ByteSize())


def size(state: ModularState) -> int:
    """Size of modules' tensors [byte]."""
    return sum(a.nbytes for tensors in state.values() for a in tensors.values())


def ledger(run: Played) -> list[Transfer]:
    """All rows of a run that has ended well."""
    assert run.error is None
    return [row for rows in run.files.transfers().values() for row in rows]


def sums(rows: Iterable[Transfer], *links: LinkClass) -> Sums:
    """Bytes and header bytes over those links."""
    found: Sums = defaultdict(int)
    for row in rows:
        if row.link in links:
            found[row.t, row.phase] += row.bytes + row.header_bytes
    return dict(found)


def tensors(rows: Iterable[Transfer], link: LinkClass) -> int:
    """Bytes of modules that were charged for over ``link``."""
    return traffic(rows)[link][0]


class Watch:
    """Messages that somebody sent and was answered."""

    def __init__(self) -> None:
        self.sums: Sums = defaultdict(int)

    def asked(self, messages: Iterable[Message]) -> None:
        """Enter questions."""
        for message in messages:
            self._enter(message, message, 0)

    def answered(self, asked: Iterable[Message], replies: Iterable[Message]) -> None:
        """Enter the replies to them."""
        for question, reply in zip(asked, replies, strict=True):
            if reply.has_content():
                self._enter(question, reply, 1)

    def _enter(self, question: Message, message: Message, side: int) -> None:
        t = int(question.metadata.group_id)
        phase = KINDS[question.metadata.message_type][side]
        if phase is Phase.DISPATCH:
            t = int(str(question.content.config_records["config"]["first"]))
            phase = phase if t > 1 else Phase.SETUP
        self.sums[t, phase] += weight(message.content)


def watch_edges(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """What the edges yield for their devices, and get back."""
    watch = Watch()
    real = EdgeStrategy.cluster_round

    def spy(self: EdgeStrategy, kind: str, content: RecordDict) -> ClusterRound:
        inner = real(self, kind, content)
        asked = next(inner)
        while True:
            watch.asked(asked)
            replies = list((yield asked))
            by_node = {r.metadata.src_node_id: r for r in replies}
            watch.answered(asked, [by_node[m.metadata.dst_node_id] for m in asked])
            try:
                asked = inner.send(replies)
            except StopIteration as stop:
                reply: RecordDict = stop.value
                return reply

    monkeypatch.setattr(EdgeStrategy, "cluster_round", spy)
    return watch


def watch_cloud(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """What the cloud sends to its edges, and gets back."""
    watch = Watch()
    real = NestedGrid.send_and_receive

    def spy(
        self: NestedGrid, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        asked = list(messages)
        watch.asked(asked)
        replies = list(real(self, asked, timeout=timeout))
        watch.answered(asked, replies)
        return replies

    monkeypatch.setattr(NestedGrid, "send_and_receive", spy)
    return watch
