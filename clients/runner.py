"""A node that stays: the ClientApp is called in this process, so what it loaded stays loaded.

Flower's own ``flower-supernode`` starts a Python process for every message. This runner
speaks the same protocol, and the same ClientApp gives the same bits under both. What it
cannot do is end an app that hangs: a call in its own process cannot be taken back.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.link import Link, LinkLost, Refused, RunOver, Value
from clients.timings import note, tensor_bytes
from hffm_flower.errors import HffmError

log = logging.getLogger(__name__)

APP_RAISED = 2
"""Flower's error code of a client app that raised."""
KEPT_RUNS = 16
"""Of so many runs the settings and ``context.state`` are kept, the latest ones."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Times between two looks for a message, and between two tries to connect [s].

    An idle node looks again after a tenth of the time that it has been idle, within bounds:
    quick in a round, quiet between rounds. Each look costs the SuperLink about 5 ms of its
    one core.
    """

    shortest_poll_s: float = 0.2
    longest_poll_s: float = 1.0
    first_retry_s: float = 0.5
    longest_retry_s: float = 20.0


class NodeRunner:
    """One node, served until it is told to stop.

    Args:
        connect: Makes an activated link; called again whenever one is lost.
        app: Answers messages.
        node_config: What this node is, e.g. ``{"partition-id": 3}``.
        pace: Times between looks and tries.
        online: A file that is there while the SuperLink knows this node.
    """

    def __init__(
        self,
        connect: Callable[[], Link],
        app: ClientApp,
        node_config: Mapping[str, Value],
        *,
        pace: Pace = Pace(),
        online: Path | None = None,
    ) -> None:
        self._connect, self._app, self._pace, self._online = connect, app, pace, online
        self._node_config = dict(node_config)
        self._contexts: dict[int, Context] = {}
        self._unsent: tuple[Message, float] | None = None
        self._retry_s = pace.first_retry_s

    def run(self, stop: threading.Event) -> None:
        """Answer messages until ``stop`` is set, at the latest after the current one.

        Raises:
            ConfigError: The link cannot be made, and waiting will not help.
        """
        self._tell(online=False)  # as an earlier process may have left it
        while not stop.is_set():
            try:
                self._session(stop)
            except LinkLost as error:
                wait = self._retry_s * random.uniform(0.8, 1.2)
                log.warning("%s; next try in %.1f s", error, wait)
                self._retry_s = min(2 * self._retry_s, self._pace.longest_retry_s)
                stop.wait(wait)

    def _session(self, stop: threading.Event) -> None:
        """Serve one link until it is lost or ``stop`` is set."""
        link = self._connect()
        log.info("node %d is online", link.node_id)
        self._tell(online=True)
        leave = True
        try:
            self._serve(link, stop)
        except LinkLost:
            leave = False
            raise
        finally:
            self._tell(online=False)
            link.close(leave=leave)

    def _tell(self, *, online: bool) -> None:
        if self._online is not None and online:
            self._online.touch()
        elif self._online is not None:
            self._online.unlink(missing_ok=True)

    def _serve(self, link: Link, stop: threading.Event) -> None:
        self._deliver(link)
        last = time.monotonic()
        while not stop.is_set():
            try:
                began_s = time.monotonic()
                message = link.receive()
                if message is not None:
                    self._note("pulled", message, began_s)
                    self._unsent = self._answer(link, message)
            except RunOver as error:
                log.info("a message is left: %s", error)
                message = None
            self._retry_s = self._pace.first_retry_s
            if message is not None:
                self._deliver(link)
                last = time.monotonic()
                continue
            idle_s = time.monotonic() - last
            stop.wait(min(max(idle_s / 10, self._pace.shortest_poll_s), self._pace.longest_poll_s))

    def _answer(self, link: Link, message: Message) -> tuple[Message, float] | None:
        """The reply and how long the app took [s]; None if it is too late for one."""
        what = f"run {message.metadata.run_id}, {message.metadata.message_type}"
        if message.metadata.group_id:
            what += f", round {message.metadata.group_id}"
        if (late_s := _late_s(message)) > 0:
            log.warning("%s: came %.1f s after its time to live, left", what, late_s)
            return None
        began = time.monotonic()
        try:
            reply = self._app(message, self._context(link, message.metadata.run_id))
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp returned {type(reply).__name__}, not a Message")
        except (LinkLost, RunOver):
            raise
        except (Exception, SystemExit) as error:  # an app that fails is data for the server
            unforeseen = not isinstance(error, HffmError)
            reason = f"{type(error).__name__}: {error}"
            log.error("%s: the ClientApp raised %s", what, reason, exc_info=unforeseen)
            reply = Message(Error(APP_RAISED, reason), reply_to=message)
        seconds = time.monotonic() - began
        log.info("%s: answered in %.2f s", what, seconds)
        return reply, seconds

    def _note(self, kind: str, message: Message, began_s: float) -> None:
        told = message.metadata
        note(
            self._node_config, kind, type=told.message_type, group=told.group_id,
            bytes=tensor_bytes(message), began_s=began_s, ended_s=time.monotonic(),
        )  # fmt: skip

    def _context(self, link: Link, run_id: int) -> Context:
        """What the app is told and what it keeps; made at a run's first message."""
        context = self._contexts.get(run_id)
        if context is None:
            facts = link.run_facts(run_id)
            of_series = [c.state for c in self._contexts.values() if c.series_id == facts.series_id]
            context = Context(
                run_id=run_id,
                node_id=link.node_id,
                node_config=dict(self._node_config),
                state=of_series[-1] if of_series else RecordDict(),
                run_config=dict(facts.run_config),
                series_id=facts.series_id,
            )
            self._contexts[run_id] = context
            if len(self._contexts) > KEPT_RUNS:
                del self._contexts[next(iter(self._contexts))]
        context.node_id = link.node_id
        return context

    def _deliver(self, link: Link) -> None:
        """Send what is unsent; if the link is lost it is kept for the next one."""
        if self._unsent is None:
            return
        reply, seconds = self._unsent
        what = f"run {reply.metadata.run_id}: an answer is left"
        try:
            if (late_s := _late_s(reply)) > 0:
                log.warning("%s: it is %.1f s late", what, late_s)
            elif reply.metadata.src_node_id != link.node_id:
                log.warning("%s: the SuperLink has forgotten who was asked", what)
            else:
                began_s = time.monotonic()
                link.send(reply, seconds)
                self._note("pushed", reply, began_s)
        except RunOver as error:
            log.info("%s: %s", what, error)
        except Refused:
            self._unsent = None
            raise
        self._unsent = None


def _late_s(message: Message) -> float:
    """How long ago a message's time to live was over [s]; negative: it is not yet."""
    return time.time() - message.metadata.created_at - message.metadata.ttl
