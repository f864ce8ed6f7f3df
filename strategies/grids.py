"""Grids: the one place where a simulated tree differs from a deployed one.

`ClusterGrid` is a cluster's view of a Flower grid. `NestedGrid` is a grid whose nodes
are edges: it plays them in this process, in lock step, over one grid of devices.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from functools import partial
from itertools import pairwise
from typing import Final, Protocol

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from hffm_flower.errors import Interrupted
from hffm_flower.ledger import Ledger, Phase, Transfer, link_between
from hffm_flower.payload import weigh
from hffm_flower.records import CONFIG, number
from strategies.grid_view import GridView

log = logging.getLogger(__name__)

NO_ANSWER = 3
"""Error code of a node that did not answer in time (Flower: message unavailable)."""
EDGE_FAILED = 2
"""Error code of an edge that raised (Flower: the client app raised)."""

TRAIN, EVALUATE = "train", "evaluate"
PROFILE_QUERY, INIT = "query.profile", "query.init"
BEGIN, END = "query.begin", "query.end"
"""To a deployed edge: all modules of the run are known; the run is over."""
UPLOAD = "query.upload"
"""Asks a device for its own update, which was to come by another way and did not."""
TRAIN_CLUSTER, EVALUATE_CLUSTER = "train.cluster", "evaluate.cluster"

PHASE_OF: Final[Mapping[str, tuple[Phase, Phase]]] = {
    PROFILE_QUERY: (Phase.SETUP, Phase.SETUP),
    INIT: (Phase.SETUP, Phase.SETUP),
    BEGIN: (Phase.SETUP, Phase.SETUP),
    END: (Phase.SETUP, Phase.SETUP),
    TRAIN: (Phase.DOWN, Phase.UP),
    UPLOAD: (Phase.ASK, Phase.REPAIR),
    EVALUATE: (Phase.EVALUATE, Phase.EVALUATE),
    TRAIN_CLUSTER: (Phase.DISPATCH, Phase.COLLECT),
    EVALUATE_CLUSTER: (Phase.PUBLISH, Phase.EVALUATE),
}
"""Type of a message -> phase of the round that it belongs to, and that its reply does. An edge
takes the cloud's new modules from ``evaluate.cluster``, so that is how they are published."""

Step = Callable[[], list[Message]]
Watch = Callable[[int, int], None]
"""Told how many nodes have answered, and how many were asked."""


class ClusterGrid(GridView):
    """View of a grid, restricted to some nodes.

    Every message gets exactly one reply, whose source is the node that was asked: silence
    until the deadline and errors made on the way become error replies of that node.

    Args:
        grid: The grid underneath.
        node_ids: Nodes that may be asked.
        stop: Set from outside to end every wait with `Interrupted`.
        watch: Called as replies come in.
        poll_s: Pause between two looks for replies [s].
        ledger: Where every message and reply is entered, with its weight.
        hops: Node id -> addresses on the way to it, from this grid's owner to the node, e.g.
            ``("edge/0", "device/3")``; see `place`. None: nothing is entered.
    """

    def __init__(
        self,
        grid: Grid,
        node_ids: Collection[int],
        *,
        stop: threading.Event | None = None,
        watch: Watch | None = None,
        poll_s: float = 0.05,
        ledger: Ledger | None = None,
        hops: Mapping[int, tuple[str, ...]] | None = None,
    ) -> None:
        super().__init__(grid)
        self._ledger = ledger or Ledger()
        self.hops: dict[int, tuple[str, ...]] | None = None if hops is None else dict(hops)
        self.reporting = False
        """Whether what passes only reports, because nothing is shared: it costs nothing."""
        self._unplaced: list[tuple[Message, Message]] = []
        self._node_ids = tuple(node_ids)
        self._stop = stop or threading.Event()
        self._watch: Watch = watch or (lambda done, asked: None)
        self._poll_s = poll_s

    def get_node_ids(self) -> Iterable[int]:
        """Nodes of this view that are online."""
        online = set(self._grid.get_node_ids())
        return [n for n in self._node_ids if n in online]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send; a message to a node outside the view is refused.

        Raises:
            ValueError: A message goes elsewhere.
        """
        outgoing = list(messages)
        strange = [m.metadata.dst_node_id for m in outgoing
                   if m.metadata.dst_node_id not in self._node_ids]  # fmt: skip
        if strange:
            raise ValueError(f"nodes {strange} are not in this cluster")
        return self._grid.push_messages(outgoing)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send, wait until all have answered or ``timeout`` [s] is over; in order of asking.

        Raises:
            Interrupted: The run was asked to stop.
        """
        asked = list(messages)
        for message in asked:
            self._enter(message, message)
        replies = self._exchange(asked, timeout)
        for message, reply in zip(asked, replies, strict=True):
            self._enter(message, reply)
        return replies

    def _exchange(self, asked: list[Message], timeout: float | None) -> list[Message]:
        """One reply per message of ``asked``, in its order."""
        waiting: dict[str, int] = {}
        replies: dict[int, Message] = {}
        for place, message in enumerate(asked):
            ids = list(self.push_messages([message]))
            if ids and ids[0]:
                waiting[ids[0]] = place
            else:
                replies[place] = _error(message, "could not be sent")
        until = None if timeout is None else time.monotonic() + timeout
        while waiting:
            if self._stop.is_set():
                raise Interrupted("stopped on request")
            for reply in self.pull_messages(list(waiting)):
                place = waiting.pop(reply.metadata.reply_to_message_id)
                question = asked[place]
                node = question.metadata.dst_node_id
                if reply.has_error() and reply.metadata.src_node_id != node:
                    reply = Message(reply.error, reply_to=question)
                replies[place] = reply
            self._watch(len(replies), len(asked))
            if not waiting:
                break
            if until is not None and time.monotonic() > until:
                for place in waiting.values():
                    replies[place] = _error(asked[place], f"no answer within {timeout:g} s")
                break
            self._stop.wait(self._poll_s)
        return [replies[place] for place in range(len(asked))]

    def place(self, hops: Mapping[int, tuple[str, ...]]) -> None:
        """Say on which way nodes are reached; enters what passed before that was known."""
        self.hops = {**(self.hops or {}), **hops}
        waiting, self._unplaced = self._unplaced, []
        for question, message in waiting:
            self._enter(question, message)

    def _enter(self, question: Message, message: Message) -> None:
        """Enter a message into the ledger: a question, or the reply to it, hop by hop."""
        if self.hops is None or message.has_error():
            return
        hops = self.hops.get(question.metadata.dst_node_id)
        if hops is None:
            self._unplaced.append((question, message))
            return
        asks = message is question
        kind = question.metadata.message_type
        phase = PHASE_OF[kind][not asks]
        weight = weigh(message.content)
        t = int(question.metadata.group_id)
        if phase is Phase.DISPATCH:
            t = number(question.content, CONFIG, "first")
            phase = phase if t > 1 else Phase.SETUP  # the initial modules
        if self.reporting and phase is not Phase.SETUP:
            phase = Phase.EVALUATE
        for src, dst in pairwise(hops if asks else reversed(hops)):
            self._ledger.add(
                Transfer(
                    t,
                    phase,
                    0,
                    src,
                    dst,
                    link_between(src, dst),
                    weight.header_bytes,
                    weight.modules,
                    weight.sizes,
                )
            )


ClusterRound = Generator[list[Message], Iterable[Message], RecordDict]
"""An edge's share of a cloud message."""


class Edge(Protocol):
    """What a grid of edges plays: an edge's share of a cloud message, and its deadline."""

    deadline_s: float

    def cluster_round(self, kind: str, content: RecordDict) -> ClusterRound:
        """Yield messages for devices, receive their replies, return the edge's reply.

        Args:
            kind: Type of the cloud's message.
            content: What it says.
        """
        ...


class NestedGrid(ClusterGrid):
    """Grid whose nodes are edges, each played in this process over a grid of devices.

    All edges advance in lock step, so that the devices of all clusters work at once.

    Args:
        devices: Grid of all devices.
        edges: Node id of an edge -> the edge.
        ledger: As in `ClusterGrid`.
        hops: As in `ClusterGrid`.
    """

    def __init__(
        self,
        devices: ClusterGrid,
        edges: Mapping[int, Edge],
        *,
        ledger: Ledger | None = None,
        hops: Mapping[int, tuple[str, ...]] | None = None,
    ) -> None:
        super().__init__(devices, tuple(edges), ledger=ledger, hops=hops)
        self._devices = devices
        self._edges = edges

    def get_node_ids(self) -> Iterable[int]:
        """The edges; they are always online."""
        return self._node_ids

    def _exchange(self, asked: list[Message], timeout: float | None) -> list[Message]:
        """Play every edge's round to its end; the edges' own deadlines bound it."""
        rounds: dict[int, ClusterRound] = {}
        pending: dict[int, list[Message]] = {}
        done: dict[int, Message] = {}
        question = {m.metadata.dst_node_id: m for m in asked}

        def advance(edge: int, step: Step) -> None:
            try:
                pending[edge] = step()
            except StopIteration as stop:
                done[edge] = Message(stop.value, reply_to=question[edge])
            except Interrupted:
                raise
            except Exception as error:  # a node that fails is data, as behind a real network
                log.exception("edge node %d failed", edge)
                done[edge] = Message(
                    Error(EDGE_FAILED, f"{type(error).__name__}: {error}"),
                    reply_to=question[edge],
                )

        for edge, message in question.items():
            kind = message.metadata.message_type
            rounds[edge] = self._edges[edge].cluster_round(kind, message.content)
            advance(edge, partial(next, rounds[edge]))
        while pending:
            sent, pending = pending, {}
            owner = {m.metadata.dst_node_id: e for e, out in sent.items() for m in out}
            limit = max(self._edges[e].deadline_s for e in sent)
            answers: dict[int, list[Message]] = defaultdict(list)
            outgoing = [m for out in sent.values() for m in out]
            for reply in self._devices.send_and_receive(outgoing, timeout=limit):
                answers[owner[reply.metadata.src_node_id]].append(reply)
            for edge in sent:
                advance(edge, partial(rounds[edge].send, answers[edge]))
        return [done[m.metadata.dst_node_id] for m in asked]


def instruction(content: RecordDict, *, node_id: int, kind: str, t: int, ttl_s: float) -> Message:
    """A message to a node, in the group of edge round ``t``, valid for ``ttl_s`` [s]."""
    return Message(content, node_id, kind, ttl=ttl_s, group_id=str(t))


def _error(question: Message, reason: str) -> Message:
    return Message(Error(NO_ANSWER, reason), reply_to=question)
