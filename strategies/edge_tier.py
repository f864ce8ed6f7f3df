"""An edge of a deployed tree: the cloud's messages come in by the gateway, devices by its grid."""

from __future__ import annotations

import json
import logging
import math
import threading
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from hffm_flower.config import RunConfig
from hffm_flower.errors import ProtocolError, QuorumError
from hffm_flower.ledger import Ledger, to_line
from hffm_flower.modules import ModularState, ModuleKey, digest
from hffm_flower.profile import profile_json
from hffm_flower.records import (
    CONFIG,
    MODULES,
    REPORT,
    TRANSFERS,
    modules_record,
    text,
    write_state,
)
from hffm_flower.report import RoundReport
from hffm_flower.rpc.channel import Credentials
from hffm_flower.rpc.gateway import EdgeGateway, Question, Superseded
from hffm_flower.runfiles import RunFiles
from hffm_flower.tasks import definitions
from hffm_flower.tree import plant
from strategies.edge import EdgeStrategy
from strategies.edge_state import restore_edge, save_edge, saved_keys
from strategies.grids import BEGIN, END, INIT, PROFILE_QUERY, ClusterGrid
from strategies.issuer import Issuer
from strategies.modular import highest_ranks
from strategies.planner import NO_PLAN
from strategies.planting import edge_of, schedule_of
from strategies.registration import (
    PROFILE,
    VERSION,
    Registered,
    initial_modules,
    register,
    wait_for_nodes,
)

log = logging.getLogger(__name__)


def serve_edge(grid: Grid, config: RunConfig, files: RunFiles, *, stop: threading.Event) -> None:
    """Be edge ``deploy.edge`` for one run of the cloud; returns when that is over.

    Args:
        grid: Grid of the edge's own SuperLink; its nodes are the cluster's devices.
        config: The run's settings.
        files: Where the edge's last modules go.
        stop: Set from outside to end.

    Raises:
        HffmError: The cluster cannot begin, or the cloud is gone.
    """
    tier = EdgeTier(grid, config, files, stop)
    tier.register()
    with EdgeGateway(config.deploy.gateway, _credentials(config)) as gateway:
        log.info("edge %d hears the cloud on port %d", tier.index, gateway.port)
        silence_s = 4 * config.server.deadline_s
        try:
            gateway.serve(tier.answer, last=END, stop=stop, silence_s=silence_s)
        except Superseded as error:
            log.warning("edge %d: %s", tier.index, error)
    tier.save()


class EdgeTier:
    """One edge, from the registration of its devices to its last modules."""

    def __init__(
        self, grid: Grid, config: RunConfig, files: RunFiles, stop: threading.Event
    ) -> None:
        self.config, self.files, self.index = config, files, config.deploy.edge
        self.network = plant(config)
        groups = self.network.topology.clusters
        if self.index >= len(groups):
            raise QuorumError(f"edge {self.index} is none of the {len(groups)} of this run")
        self.cluster = groups[self.index]
        self.ledger = Ledger()
        self.stop = stop
        self.devices: dict[int, Registered] = {}
        self.refused: dict[int, str] = {}
        self.initial: ModularState = {}
        self.keys: tuple[ModuleKey, ...] = ()
        self.edge: EdgeStrategy | None = None
        self._grid = grid
        self._run = 0

    def register(self) -> None:
        """Wait for the cluster's devices and take them in."""
        server = self.config.server
        least = max(1, math.ceil(server.quorum * len(self.cluster)))
        nodes = wait_for_nodes(
            self._grid, len(self.cluster), least=least,
            deadline_s=server.deadline_s, stopped=self.stop.is_set,
        )  # fmt: skip
        self.view = ClusterGrid(
            self._grid, nodes, stop=self.stop, poll_s=0.1, ledger=self.ledger, hops={}
        )
        self.devices, self.refused = register(
            self.view, nodes, version=VERSION, settings=self.config.shared(),
            deadline_s=server.deadline_s,
        )  # fmt: skip
        for node, device in list(self.devices.items()):
            if device.profile.index not in self.cluster:
                self._refuse(node, f"device {device.profile.index} is not of edge {self.index}")
        if len(self.devices) < least:
            reasons = "; ".join(sorted(set(self.refused.values()))[:3])
            raise QuorumError(
                f"{len(self.devices)} of {len(self.cluster)} devices could be registered; {reasons}"
            )
        self.view.place(
            {
                n: (f"edge/{self.index}", f"device/{d.profile.index}")
                for n, d in self.devices.items()
            }
        )
        log.info("edge %d: %d devices", self.index, len(self.devices))

    def answer(self, question: Question) -> RecordDict:
        """Answer a message of the cloud.

        Raises:
            Superseded: The cloud has begun another run; this one is over.
            HffmError: It cannot be answered.
        """
        other = self._run not in (0, question.run)
        if question.kind == PROFILE_QUERY:
            if other:
                raise Superseded(f"run {question.run} of the cloud follows run {self._run}")
            return self._profile()
        if other:
            raise ProtocolError(f"run {question.run} is not served: run {self._run} is")
        self._run = question.run  # from now on, so that a run that is refused binds nobody
        if question.kind == BEGIN:
            self.keys = _keys(text(question.content, CONFIG, "keys"))
            return self._begun()
        if question.kind == INIT:
            return self._initial(question.content)
        if question.kind == END:
            return RecordDict()
        return self._play(question)

    def _profile(self) -> RecordDict:
        """The edge as if it were a device that holds what its devices hold."""
        profiles = [d.profile for d in self.devices.values()]
        members = [d.member() for d in self.devices.values()]
        layout = {n: s for d in self.devices.values() for n, s in d.layout.items()}
        tasks: dict[str, int] = {}
        for profile in profiles:
            for task, examples in profile.tasks.items():
                tasks[task] = tasks.get(task, 0) + examples
        return _json(
            {
                "version": VERSION,
                "settings": self.config.shared(),
                "index": self.index,
                "modalities": sorted({m for p in profiles for m in p.modalities}),
                "tasks": tasks,
                "wanted": sorted({t for p in profiles for t in p.wanted}),
                "tests": {},
                "layout": layout,
                "definitions": definitions(self.config.data.tasks),
                "ranks": {str(k): rank for k, rank in highest_ranks(members).items()},
            }
        )

    def _begun(self) -> RecordDict:
        schedule = schedule_of(self.config, self.keys)
        self.edge = edge_of(
            self.config, self.network, self.index,
            {n: d.member() for n, d in self.devices.items() if not d.profile.idle},
            schedule, on_round=self._on_round, **self._peers(),
        )  # fmt: skip
        return _json(
            {
                "devices": [profile_json(d.profile) for d in self.devices.values()],
                "refused": {str(n): why for n, why in self.refused.items()},
            }
        )

    def _peers(self) -> dict[str, Any]:
        """What a plan of D2D needs besides: leave for the devices to speak to each other."""
        if self.config.d2d.plan == NO_PLAN:
            return {}
        addresses = {d.profile.index: d.profile.peer for d in self.devices.values()}
        tickets = Issuer(addresses, self._run, ledger=self.ledger)
        return {"tickets": tickets, "online": self.view.get_node_ids}

    def _initial(self, content: RecordDict) -> RecordDict:
        """Modules that were asked for, from the cluster's devices; digests of others."""
        send, compare = (_keys(text(content, CONFIG, name)) for name in ("send", "digest"))
        wanted = {*send, *compare} - self.initial.keys()
        found, silent = initial_modules(
            self.view, self.devices, wanted, deadline_s=self.config.server.deadline_s
        )
        self.initial = {**self.initial, **found}
        for node, why in silent.items():
            self._refuse(node, why)
        digests = {str(k): digest(self.initial[k]) for k in compare if k in self.initial}
        return RecordDict(
            {
                MODULES: modules_record({k: self.initial[k] for k in send if k in self.initial}),
                "digests": ConfigRecord({"json": json.dumps(digests)}),
            }
        )

    def _play(self, question: Question) -> RecordDict:
        """Rounds of the cluster; from the saved state if this ServerApp took over."""
        if self.edge is None:
            self._take_over()
        assert self.edge is not None
        steps = self.edge.cluster_round(question.kind, question.content)
        try:
            asked = next(steps)
            while True:
                asked = steps.send(self.view.send_and_receive(asked, timeout=self.edge.deadline_s))
        except StopIteration as stop:
            content: RecordDict = stop.value
        rounds = sorted({row.t for row in self.ledger.rows})
        lines = [to_line(t, self.ledger.take(t)) for t in rounds]
        content.config_records[REPORT][TRANSFERS] = lines
        return content

    def _take_over(self) -> None:
        if not self._state.exists():
            raise ProtocolError(f"edge {self.index} has no state of this run to go on from")
        self.keys = saved_keys(self._state)
        self._begun()
        assert self.edge is not None
        restore_edge(self._state, self.edge)
        log.info("edge %d goes on after edge round %d", self.index, self.edge.t)

    def _on_round(self, report: RoundReport) -> None:
        assert self.edge is not None
        save_edge(self._state, self.edge, self.keys)

    def save(self) -> None:
        """Write the edge's modules after its last round."""
        if self.edge is not None:
            write_state(self.files.edge(self.index), self.edge.final_modules or self.edge.modules)
        self._state.unlink(missing_ok=True)

    @property
    def _state(self) -> Path:
        root = Path(self.config.paths.state or self.config.cache_dir() / "state")
        return root / str(self._run) / f"edge-{self.index}.safetensors"

    def _refuse(self, node: int, why: str) -> None:
        log.warning("node %d refused: %s", node, why)
        self.refused[node] = why
        self.devices.pop(node, None)


def _credentials(config: RunConfig) -> Credentials | None:
    """Certificates of this machine.

    Raises:
        ProtocolError: There are none, and nobody said to go without.
    """
    deploy = config.deploy
    if deploy.certificates:
        own = Path(deploy.certificates)
        return Credentials.read(own / "ca.pem", own / "cert.pem", own / "key.pem")
    if deploy.insecure:
        return None
    raise ProtocolError("deploy.certificates names no folder (hffm certs); or deploy.insecure=true")


def _keys(words: str) -> tuple[ModuleKey, ...]:
    return tuple(map(ModuleKey.parse, words.split()))


def _json(told: dict[str, Any]) -> RecordDict:
    return RecordDict({PROFILE: ConfigRecord({"json": json.dumps(told)})})
