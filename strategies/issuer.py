"""Lets the devices of a deployed cluster speak to each other, and hears what they sent."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Mapping

from flwr.app import RecordDict

from hffm_flower.errors import HffmError
from hffm_flower.ledger import DEVICE, Ledger
from hffm_flower.modules import ModularState, digest, shapes
from hffm_flower.payload import Admission, sent_of
from hffm_flower.rpc.codec import Allowed
from hffm_flower.rpc.tickets import KEY_BYTES, issue

log = logging.getLogger(__name__)


class Issuer:
    """Makes the tickets of a cluster, edge round by edge round, from a secret of the run.

    Args:
        addresses: Device -> ``host:port`` where its peers reach it; empty: nowhere.
        run: Flower's id of the run.
        ledger: Where the messages between devices are entered, as their senders report them.
    """

    def __init__(
        self, addresses: Mapping[int, str], run: int, *, ledger: Ledger | None = None
    ) -> None:
        self.addresses = {k: where for k, where in sorted(addresses.items()) if where}
        self._run = run
        self._ledger = ledger or Ledger()
        self._secret = secrets.token_bytes(KEY_BYTES)

    def admissions(
        self, t: int, examples: Mapping[int, float], modules: ModularState, deadline_s: float
    ) -> dict[int, Admission]:
        """One admission for every participant of edge round ``t``.

        Args:
            t: Edge round.
            examples: Participant, one that has an address -> most mass behind a module.
            modules: What may travel, as published.
            deadline_s: How long the edge waits for replies [s].
        """
        allowed = Allowed(shapes(modules), examples)
        digests = {key: digest(state) for key, state in modules.items()}
        addresses = {k: self.addresses[k] for k in examples}
        tickets = issue(self._secret, addresses, run=self._run, t=t)
        return {k: Admission(tickets[k], allowed, deadline_s, digests) for k in tickets}

    def enter(self, content: RecordDict, t: int, device: int, participants: Iterable[int]) -> None:
        """Enter what ``device`` reports that it sent; a report that cannot be is left out."""
        known = {f"{DEVICE}/{k}" for k in participants}
        try:
            self._ledger.extend(row for row in sent_of(content, t, device) if row.dst in known)
        except HffmError as error:
            log.warning("device %d: %s", device, error)
