"""What is kept alive in a tree: SuperLinks with their guards, and the edges' ServerApps."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from hffm_flower.errors import HffmError
from hffm_flower.session.bundle import Flwr
from hffm_flower.session.hosts import HERE, Hosts
from hffm_flower.session.processes import Processes, Program
from hffm_flower.session.roles import LinkRole

log = logging.getLogger(__name__)

PROBE_S = 1.0
"""Time between two looks whether an edge's gateway is open [s]."""
STATUS_S = 20.0
"""Time between two questions to a SuperLink about a run that shows no other sign [s]."""
GONE_S = 4.0
"""So long a gateway may be closed before its ServerApp counts as gone [s]."""


class Link:
    """A SuperLink and its guard; nodes' keys are registered in each life of it.

    Runs that a former life has left in its database are stopped: nobody is at work on them.

    Args:
        name: Of the tier, for logs and for ``flwr``.
        role: Addresses, certificates, keys.
        processes: Where its programs run.
        flwr: Commands.
        restarts: How often the SuperLink is started again, should it die.
        hosts: Where ``name`` is one of the machines.
    """

    def __init__(
        self, name: str, role: LinkRole, processes: Processes, flwr: Flwr, *,
        restarts: int = 3, hosts: Hosts = HERE,
    ) -> None:  # fmt: skip
        self.name, self.role, self._hosts = name, role, hosts
        self._processes, self._flwr, self._restarts = processes, flwr, restarts
        self._registered = 0
        self._keys = role.public_keys()
        self._cleared = 0 if os.path.exists(role.database) else 1
        """The life before which no run was left."""

    def start(self) -> None:
        """Start the SuperLink and its guard."""
        enter = self._hosts.command(self.name, ())
        self._flwr.connect(self.name, self.role.superlink, self.role.authority, enter=enter)
        superlink, guard = self.role.link_programs(self.name)
        self._start(replace(superlink, restarts=self._restarts))
        self._start(guard)

    def _start(self, program: Program) -> None:
        argv = self._hosts.command(self.name, program.argv)
        self._processes.start(replace(program, argv=argv))

    @property
    def life(self) -> int:
        """How often the SuperLink has been started."""
        return self._processes.starts(f"{self.name}-superlink")

    @property
    def lost(self) -> str:
        """Which of the two has died for good, and its last words; empty: none."""
        for program in (f"{self.name}-superlink", f"{self.name}-guard"):
            if self._processes.given_up(program):
                return f"{program} died: {self._processes.tail(program)}"
        return ""

    def listening(self, address: str) -> bool:
        """Whether somebody takes connections there, as seen from this SuperLink's machine."""
        return self._hosts.listening(self.name, address)

    def ready(self) -> bool:
        """Whether it takes runs; registers keys where that is to be done."""
        if not self._processes.running(f"{self.name}-superlink"):
            return False
        if self._registered == self.life:
            return True
        if not self.listening(self.role.superlink):
            return False
        life = self.life
        try:
            if self.role.database and self._cleared < life:
                self._stop_runs()
                self._cleared = life
            for key in self._keys:
                self._flwr.register(self.name, key)
        except HffmError as error:
            log.warning("%s: keys are registered later: %s", self.name, error)
            return False
        if self._keys:
            log.info("%s: %d keys registered", self.name, len(self._keys))
        self._registered = life
        return True

    def _stop_runs(self) -> None:
        for run in self._flwr.runs(self.name):
            if not run.over:
                self._flwr.stop(self.name, run.run_id)
                log.warning("%s: run %d is stopped: its SuperLink has died", self.name, run.run_id)


class EdgeRun:
    """An edge's ServerApp: handed in to the edge's SuperLink, and again whenever it is gone.

    Args:
        link: The edge's SuperLink.
        gateway: Where the ServerApp listens once its devices are there.
        settings: Settings of the n-th run, from 0. A run that failed is handed in again with
            the same, so that it goes on; one that ended well is followed by the next.
        retries: How often a failed run is handed in again; None: always.
        runs: How many runs are wanted; None: one after another.
    """

    def __init__(
        self, link: Link, gateway: str, settings: Callable[[int], Mapping[str, object]],
        flwr: Flwr, *, retries: int | None = 5, runs: int | None = 1,
    ) -> None:  # fmt: skip
        self.link, self._gateway, self._settings, self._flwr = link, gateway, settings, flwr
        self._retries, self._runs = retries, runs
        self.done, self.failures = 0, 0
        self.open = self.given_up = False
        self.run_id: int | None = None
        self._life = 0
        self._next = self._probed = 0.0
        self._closed_since: float | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will be handed in."""
        return self.given_up or self.done == self._runs

    def tick(self) -> None:
        """Look after the ServerApp; call it about twice a second."""
        now = time.monotonic()
        if self.over or now < self._probed or not self.link.ready():
            return
        self._probed = now + PROBE_S
        if self.run_id is None:
            if now >= self._next:
                self._submit(now)
        elif self.link.life != self._life:
            self._failed("its SuperLink was started again", now)
        else:
            self._watch(now)

    def _submit(self, now: float) -> None:
        try:
            self.run_id = self._flwr.run(self.link.name, self._settings(self.done))
        except HffmError as error:
            self._failed(str(error), now)
            return
        log.info("%s: run %d handed in", self.link.name, self.run_id)
        self._life, self._next = self.link.life, time.monotonic() + STATUS_S
        self.open, self._closed_since = False, None

    def _watch(self, now: float) -> None:
        if self.link.listening(self._gateway):
            self.open, self._closed_since = True, None
            return
        if self.open and self._closed_since is None:
            self._closed_since, self._next = now, now + PROBE_S
        if now >= self._next:
            self._next = now + (PROBE_S if self._closed_since else STATUS_S)
            self._ask(now)

    def _ask(self, now: float) -> None:
        """Ask the SuperLink for the run's state."""
        assert self.run_id is not None
        try:
            run = self._flwr.status(self.link.name, self.run_id)
        except HffmError as error:
            log.warning("%s: %s", self.link.name, error)
            return
        if run.well:
            log.info("%s: run %d has ended", self.link.name, self.run_id)
            self.done, self.failures, self.run_id = self.done + 1, 0, None
        elif run.over or run.status == "unknown":
            self._failed(run.details or run.status, now)
        elif self._closed_since and now - self._closed_since > GONE_S:
            self._failed("its ServerApp is gone", now, stop=True)

    def _failed(self, reason: str, now: float, *, stop: bool = False) -> None:
        if stop and self.run_id is not None:
            try:
                self._flwr.stop(self.link.name, self.run_id)
            except HffmError as error:
                log.info("%s: %s", self.link.name, error)
        self.run_id, self.failures = None, self.failures + 1
        self.open, self._closed_since = False, None
        if self._retries is not None and self.failures > self._retries:
            self.given_up = True
            log.error("%s: run failed and is given up: %s", self.link.name, reason)
            return
        self._next = now + min(30.0, 1.0 * self.failures)
        log.warning("%s: run failed, handed in again: %s", self.link.name, reason)
