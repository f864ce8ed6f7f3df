"""One federation: registers the devices, plants the tree of strategies, runs it, saves it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from flwr.serverapp import Grid

from hffm_flower.config import RunConfig
from hffm_flower.errors import QuorumError
from hffm_flower.ledger import CLOUD, Ledger, traffic
from hffm_flower.modules import ModularState, ModuleKey
from hffm_flower.payload import bytes_by_kind
from hffm_flower.profile import NodeProfile
from hffm_flower.records import modules_record, write_state
from hffm_flower.report import RoundReport, TaskFacts
from hffm_flower.result import build, carried, means, task_facts
from hffm_flower.runfiles import RunFiles
from hffm_flower.schedule import Schedule, Scope
from hffm_flower.tree import groups_of, plant
from hffm_flower.wireless.pricing import price
from strategies.cloud import CloudStrategy, quiet_flower
from strategies.edge import EdgeStrategy
from strategies.grids import ClusterGrid, NestedGrid
from strategies.modular import Member, highest_ranks
from strategies.peer_grid import PeerGrid
from strategies.planting import edge_of, lora_of, schedule_of
from strategies.registration import (
    VERSION,
    Registered,
    initial_modules,
    register,
    wait_for_nodes,
)

log = logging.getLogger(__name__)
Event = Callable[[Mapping[str, object]], None]
"""Told of progress, for a live display: ``{"event": ..., ...}``."""


class Federation:
    """One run, from registration to the saved folder."""

    def __init__(
        self, config: RunConfig, files: RunFiles, event: Event, stop: threading.Event
    ) -> None:
        self.config, self.files, self.event, self.stop = config, files, event, stop
        self.t = 0
        self.phase = "waiting for nodes"
        self.edges: dict[int, EdgeStrategy] = {}
        self.cloud_modules: ModularState = {}
        self.tasks: dict[str, TaskFacts] = {}
        self.refused: dict[int, str] = {}
        self.idle: list[int] = []
        self.carried: Mapping[str, object] = {}
        self.cycle = 1
        self.exchanges: frozenset[int] = frozenset()
        self.network = plant(config)
        self.ledger = Ledger()
        self._began = time.monotonic()
        self._open: dict[int, list[RoundReport]] = defaultdict(list)

    def run(self, grid: Grid) -> None:
        """Play the whole tree over a grid of devices."""
        config, server = self.config, self.config.server
        nodes = wait_for_nodes(
            grid, config.tree.devices, least=self._quorum(),
            deadline_s=server.deadline_s, stopped=self.stop.is_set,
        )  # fmt: skip
        view = PeerGrid(grid, nodes, stop=self.stop, watch=self.watch, ledger=self.ledger, hops={})
        self.phase = "registering"
        devices, self.refused = register(
            view, nodes, version=VERSION, settings=config.shared(),
            deadline_s=server.deadline_s,
        )  # fmt: skip
        self._refuse(devices, {})
        schedule = self.take_stock([d.profile for d in devices.values()], devices.values())
        view.place({n: self._hops(d.profile.index) for n, d in devices.items()})
        view.most = {n: d.member().examples for n, d in devices.items()}
        view.reporting = not self.shared(schedule)
        self.phase = "initial modules"
        shared = self.shared(schedule)
        initial, silent = initial_modules(view, devices, shared, deadline_s=server.deadline_s)
        self._refuse(devices, silent)
        self.edges = self._plant(devices, schedule)
        members = {
            node: Member(
                e.index,
                e.keys,
                sum(m.examples for m in e.members.values()),
                ranks=highest_ranks(e.members.values()),
            )
            for node, e in self.edges.items()
        }
        hops = {n: (CLOUD, f"edge/{e.index}") for n, e in self.edges.items()}
        tree = NestedGrid(view, self.edges, ledger=self.ledger, hops=None if config.flat else hops)
        self.conduct(members, schedule, initial, tree)

    def take_stock(
        self, profiles: Iterable[NodeProfile], holders: Iterable[Registered]
    ) -> Schedule:
        """Note what the devices are, and what follows from all that they hold."""
        known = list(profiles)
        self.idle, self.carried = [p.index for p in known if p.idle], carried(known)
        self.tasks = task_facts(self.config.data.tasks, known)
        schedule = schedule_of(self.config, {key for h in holders for key in h.keys})
        self.cycle = schedule.cycle()
        return schedule

    def shared(self, schedule: Schedule) -> set[ModuleKey]:
        """Modules that do not stay on their device."""
        return schedule.placements.keys() - set(schedule.scoped(Scope.DEVICE))

    def conduct(
        self,
        members: Mapping[int, Member],
        schedule: Schedule,
        initial: ModularState,
        edges: ClusterGrid,
    ) -> None:
        """Have the cloud run all rounds over a grid of ``edges``."""
        server = self.config.server
        edges.reporting = not schedule.scoped(Scope.CLOUD)
        self.files.append_transfers(0, self.ledger.take(0))
        cloud = CloudStrategy(
            members, schedule, initial,
            rule=server.rule, optimizer=server.optimizer, quorum=server.quorum,
            deadline_s=server.deadline_s, report_every=server.evaluate_every,
            on_round=self._on_round, ledger=self.ledger,
            lora=lora_of(self.config, members.values(), cloud=True),
        )  # fmt: skip
        self.exchanges = frozenset(cloud.exchanges)
        self.phase = "training"
        with quiet_flower():
            cloud.start(
                edges,
                modules_record(initial),
                num_rounds=len(cloud.exchanges),
                timeout=cloud.round_timeout_s(),
            )

    def _refuse(self, devices: dict[int, Registered], nodes: Mapping[int, str]) -> None:
        """Leave nodes out; below the quorum the run ends."""
        self.refused |= nodes
        for node in nodes:
            del devices[node]
        if len(devices) < self._quorum():
            raise QuorumError(
                f"{len(devices)} of {self._asked()} could be registered in server.deadline-s = "
                f"{self.config.server.deadline_s:g}; "
                + "; ".join(sorted(set(self.refused.values()))[:3])
            )

    def _asked(self) -> str:
        """Who is to register."""
        return f"{self.config.tree.devices} devices"

    def _quorum(self) -> int:
        """Least devices that a run needs."""
        return max(1, math.ceil(self.config.server.quorum * self.config.tree.devices))

    def _hops(self, device: int) -> tuple[str, ...]:
        """Addresses on the way to a device from whoever averages it."""
        way = (f"edge/{self.network.topology.edge_of()[device]}", f"device/{device}")
        return (CLOUD, *way) if self.config.flat else way

    def _plant(
        self, devices: Mapping[int, Registered], schedule: Schedule
    ) -> dict[int, EdgeStrategy]:
        node_of = {d.profile.index: n for n, d in devices.items() if not d.profile.idle}
        return {
            index + 1: edge_of(
                self.config, self.network, index,
                {node_of[k]: devices[node_of[k]].member() for k in cluster if k in node_of},
                schedule, on_round=self._on_edge_round,
            )
            for index, cluster in enumerate(groups_of(self.config, self.network))
        }  # fmt: skip

    def watch(self, done: int, asked: int) -> None:
        """Tell how many of the asked nodes have answered."""
        self.event({"event": "wait", "phase": self.phase, "t": self.t, "done": done, "of": asked})

    def _on_edge_round(self, report: RoundReport) -> None:
        """Write an edge round as soon as all edges have ended it, unless the cloud will."""
        self._open[report.t].append(report)
        if report.t not in self.exchanges:
            self._close(report.t)

    def _close(self, t: int) -> None:
        if t > self.t and len(self._open[t]) == len(self.edges):
            total = RoundReport(t)
            for part in self._open.pop(t):
                total.add(part)
            self._write(total)

    def _on_round(self, report: RoundReport, modules: ModularState) -> None:
        self.cloud_modules = modules
        self.files.save_cloud(modules)
        if report.t > self.t:
            self._write(report)

    def _write(self, report: RoundReport) -> None:
        self.t = report.t
        transfers = self.ledger.take(report.t)
        work = {int(device): flops for device, flops in report.work.items()}
        cost = price(transfers, self.network.block(report.t), work)
        report.latency_s, report.energy_j = cost.latency_s, cost.energy_j
        report.traffic = {link: list(amount) for link, amount in traffic(transfers).items()}
        report.kinds = bytes_by_kind(transfers)
        if before := self.ledger.take(0):  # of edges, whose reports have just come
            self.files.append_transfers(0, before)
        self.files.append_transfers(report.t, transfers)
        report.seconds = time.monotonic() - self._began
        self.files.append(report)
        figures = means(report, self.tasks)
        loss = report.loss_sum / max(1, report.trained)
        self.event({
            "event": "round", "t": report.t, "loss": loss, "mean_global": figures,
            "devices": len(report.devices), "dropped": len(report.dropped),
            "latency_s": report.latency_s, "energy_j": report.energy_j,
        })  # fmt: skip
        log.info(
            "round %d: %d devices, loss %.3f%s", report.t, len(report.devices), loss,
            "".join(f", {tier} {value:.3f}" for tier, value in figures.items()),
        )  # fmt: skip

    def save(self, status: str, reason: str) -> None:
        """Write what there is, of a run that has ended in whatever way."""
        for t in sorted(self._open):
            self._close(t)
        self.files.save_cloud(self.cloud_modules)
        for edge in self.edges.values():
            write_state(self.files.edge(edge.index), edge.final_modules or edge.modules)
        notes = {
            "idle_devices": self.idle,
            **self.carried,
            "clusters": groups_of(self.config, self.network),
            "refused_nodes": {str(n): why for n, why in self.refused.items()},
        }
        self.files.write_result(
            build(
                self.config, self.files.rounds(), self.tasks,
                cycle=self.cycle, status=status, reason=reason, notes=notes,
            )
        )  # fmt: skip
