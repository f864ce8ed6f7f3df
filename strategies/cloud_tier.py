"""The cloud of a deployed tree: its nodes are edges, each behind a SuperLink of its own."""

from __future__ import annotations

import contextlib
import json
import logging

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from hffm_flower.errors import HffmError, ProtocolError, QuorumError
from hffm_flower.ledger import CLOUD
from hffm_flower.profile import NodeProfile, profile_of
from hffm_flower.records import CONFIG, failure_of, text
from strategies.federation import Federation
from strategies.grids import BEGIN, END, ClusterGrid, instruction
from strategies.registration import (
    PROFILE,
    VERSION,
    Registered,
    initial_modules,
    register,
    wait_for_nodes,
)

log = logging.getLogger(__name__)


class CloudTier(Federation):
    """One run of the cloud, from the edges' registration to the saved folder.

    Edges answer as devices do: their profile holds what their devices hold.
    """

    def run(self, grid: Grid) -> None:
        """Run over a grid of edges."""
        config, server = self.config, self.config.server
        self.phase = "waiting for edges"
        nodes = wait_for_nodes(
            grid, config.tree.edges, least=self._quorum(),
            deadline_s=server.deadline_s, stopped=self.stop.is_set,
        )  # fmt: skip
        view = ClusterGrid(
            grid, nodes, stop=self.stop, watch=self.watch, poll_s=0.1, ledger=self.ledger, hops={}
        )
        self.phase = "registering"
        edges, self.refused = register(
            view, nodes, version=VERSION, settings=config.shared(),
            deadline_s=server.deadline_s, what="edge",
        )  # fmt: skip
        self._refuse(edges, {})
        view.place({n: (CLOUD, f"edge/{e.profile.index}") for n, e in edges.items()})
        try:
            profiles = self._begin(view, edges)
            schedule = self.take_stock(profiles, edges.values())
            self.phase = "initial modules"
            initial, silent = initial_modules(
                view, edges, self.shared(schedule), deadline_s=server.deadline_s
            )
            self._refuse(edges, silent)
            self.conduct({n: e.member() for n, e in edges.items()}, schedule, initial, view)
        finally:
            self._end(view, edges)

    def _asked(self) -> str:
        return f"{self.config.tree.edges} edges"

    def _quorum(self) -> int:
        """Least edges that a run needs."""
        return max(1, round(self.config.server.quorum * self.config.tree.edges))

    def _begin(self, view: ClusterGrid, edges: dict[int, Registered]) -> list[NodeProfile]:
        """Tell every edge all modules of the run; hear of its devices."""
        keys = " ".join(sorted({str(k) for e in edges.values() for k in e.keys}))
        questions = [
            instruction(
                RecordDict({CONFIG: ConfigRecord({"t": 0, "keys": keys})}),
                node_id=n, kind=BEGIN, t=0, ttl_s=self.config.server.deadline_s,
            )
            for n in edges
        ]  # fmt: skip
        profiles: list[NodeProfile] = []
        silent: dict[int, str] = {}
        for reply in view.send_and_receive(questions, timeout=self.config.server.deadline_s):
            node = reply.metadata.src_node_id
            try:
                if reply.has_error():
                    raise ProtocolError(failure_of(reply))
                told = json.loads(text(reply.content, PROFILE, "json"))
                profiles += [profile_of(raw) for raw in told["devices"]]
                self.refused |= {int(n): str(why) for n, why in told["refused"].items()}
            except (HffmError, ValueError, KeyError, TypeError, AttributeError) as error:
                silent[node] = f"edge {edges[node].profile.index} cannot begin: {error}"
        self._refuse(edges, silent)
        if len({p.index for p in profiles}) < len(profiles):
            raise QuorumError("two edges have the same device; each is in one cluster")
        return sorted(profiles, key=lambda p: p.index)

    def _end(self, view: ClusterGrid, edges: dict[int, Registered]) -> None:
        """Tell the edges that the run is over; they save and go."""
        questions = [
            instruction(
                RecordDict({CONFIG: ConfigRecord({"t": self.t})}),
                node_id=n, kind=END, t=self.t, ttl_s=30.0,
            )
            for n in edges
        ]  # fmt: skip
        with contextlib.suppress(HffmError):
            list(view.send_and_receive(questions, timeout=30.0))
