"""The seam between a node's loop and the network: what a link to a SuperLink can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Message

Value = str | int | float | bool


class LinkLost(Exception):
    """The SuperLink cannot be reached: connect anew."""


class Refused(LinkLost):
    """The SuperLink answers, but not this node (any more): connect anew, as a new node."""


class RunOver(Exception):
    """The run that a message belongs to has ended, so nobody waits for the answer."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a node has to know of a run.

    Attributes:
        run_config: Flower's flat run config.
        series_id: Runs of one series share what an app keeps in ``context.state``.
    """

    run_config: Mapping[str, Value]
    series_id: int


class Link(Protocol):
    """An activated node's connection to its SuperLink.

    Every method but `close` raises `LinkLost`; those that name a run raise `RunOver`.
    """

    @property
    def node_id(self) -> int:
        """Flower's id of this node."""
        ...

    def receive(self) -> Message | None:
        """The next message with all its content, or None if there is none now."""
        ...

    def run_facts(self, run_id: int) -> RunFacts:
        """Settings of a run."""
        ...

    def send(self, reply: Message, app_seconds: float) -> None:
        """Send a reply; the same one may be sent again if it is not known to have arrived."""
        ...

    def close(self, *, leave: bool) -> None:
        """End heartbeats and connection; ``leave`` tells the SuperLink that the node goes."""
        ...
