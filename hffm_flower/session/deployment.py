"""``up(config)``: a whole tree on this machine, every part of it a process of its own."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import psutil

from hffm_flower.config import RunConfig
from hffm_flower.errors import HffmError, ModuleError
from hffm_flower.report import RoundReport, TaskFacts
from hffm_flower.result import means, task_facts
from hffm_flower.runfiles import LOG, RunFiles
from hffm_flower.session.bundle import Flwr
from hffm_flower.session.following import patience_s
from hffm_flower.session.local_roles import Kind, local_roles
from hffm_flower.session.plan import Plan
from hffm_flower.session.processes import Processes, Program
from hffm_flower.session.roles import EdgeRole
from hffm_flower.session.run import STATE, RunResult, finish, settled
from hffm_flower.session.tiers import STATUS_S, EdgeRun, Link
from hffm_flower.session.worker import Show, hurried

log = logging.getLogger(__name__)

TICK_S = 0.5
SAVE_S = 30.0
"""How long edges may take to save and end after the cloud has [s]."""
CLOUD = "cloud"


def up(config: RunConfig, plan: Plan, files: RunFiles, show: Show, kind: Kind) -> RunResult:
    """Bring a tree up, run a federation in it, and take everything down again.

    Args:
        config: Settings, checked.
        plan: What `preflight.check` found.
        files: Folder for the results and for ``logs/``.
        show: Told of progress.
        kind: Nodes and security.

    Raises:
        HffmError: The run ended early; its folder holds what was finished, and says why.
    """
    config = settled(config, files)
    with _logged(files.root / LOG):
        try:
            with Processes(files.root / "logs") as processes:
                tree = Tree(config, plan, files, processes, kind)
                try:
                    tree.work(show)
                except BaseException:
                    show({"event": "stopping"})
                    tree.stop()
                    raise
                finally:
                    tree.collect()
        except (HffmError, KeyboardInterrupt) as error:
            log.error("%s", str(error) or "stopped on request")
            finish(config, plan, files, error)
            raise
        finish(config, plan, files)
    return RunResult(files.root, files.result(), tuple(files.rounds()))


class Tree:
    """The processes of one federation: SuperLinks and guards, nodes, runs."""

    def __init__(
        self, config: RunConfig, plan: Plan, files: RunFiles, processes: Processes, kind: Kind
    ) -> None:
        self.config, self.files, self.processes = config, files, processes
        self.flwr = Flwr(processes.scratch / "flwr", processes.environment)
        self._state = processes.scratch / "state"
        self._hosts = kind.hosts
        self._hosts.begin(processes)
        self._online: dict[str, int] = {}
        self._shown = 0
        self._at_work = False
        self._done: dict[int, int] = {}
        self._tasks = task_facts(config.data.tasks, plan.profiles)
        clusters = () if config.flat else plan.groups
        roles = local_roles(
            config.tree.devices, clusters, processes.scratch, kind,
            peers=config.d2d.plan != "none",
        )  # fmt: skip
        self.cloud = Link(CLOUD, roles.cloud, processes, self.flwr, restarts=0, hosts=self._hosts)
        self.edges = [self._edge(role) for role in roles.edges]
        above = {e.link.role.listen: e.link for e in self.edges} | {roles.cloud.listen: self.cloud}
        self._waiting = [
            (self.cloud, self._node(f"edge-{e.index}", e.node(f"edge-{e.index}-node")))
            for e in roles.edges
        ]
        self._waiting += [
            (above[d.superlink], self._node(f"device-{d.index}", d.node(f"device-{d.index}")))
            for d in roles.devices
        ]
        self.nodes = [node for _, node in self._waiting]

    def _node(self, host: str, program: Program) -> Program:
        return replace(program, argv=self._hosts.command(host, program.argv))

    def _edge(self, role: EdgeRole) -> EdgeRun:
        link = Link(f"edge-{role.index}", role, self.processes, self.flwr, hosts=self._hosts)
        settings = {**self._settings(), **role.settings(), "paths.out": role.out}
        settings["deploy.run"] = f"edge-{role.index}"
        return EdgeRun(link, role.gateway, lambda number: settings, self.flwr)

    def _settings(self) -> dict[str, object]:
        """Settings that all runs of the tree share."""
        return {**self.config.to_flwr(), "paths.state": str(self._state)}

    def _cloud_settings(self) -> dict[str, object]:
        shared = self._settings()
        if not self.edges:
            return shared
        role = self.cloud.role
        return {**shared, "deploy.tier": "cloud", "deploy.certificates": role.certificates,
                "deploy.insecure": role.insecure}  # fmt: skip

    def work(self, show: Show) -> None:
        """Start everything, hand the runs in, and wait for the end.

        Raises:
            HffmError: The cloud's run failed, or nothing has moved for too long.
        """
        (self.files.root / "rounds.jsonl").unlink(missing_ok=True)  # the ServerApp begins; we hold
        self.cloud.start()
        for edge in self.edges:
            edge.link.start()
        began = moved = time.monotonic()
        patience = patience_s(self.config)
        run_id: int | None = None
        asked, before = began, None
        while not self.files.has_result():
            self.processes.look_after()
            self._hosts.tick(self.begun)
            self._start_nodes()
            for edge in self.edges:
                edge.tick()
            now = time.monotonic()
            if self.cloud.lost:
                raise HffmError(f"the cloud is lost: {self.cloud.lost}")
            if run_id is None and self.cloud.ready() and self._may_begin(now - began):
                run_id = self.flwr.run(CLOUD, self._cloud_settings())
                self._at_work = True
                log.info("cloud: run %d handed in", run_id)
                asked = time.monotonic()
            elif run_id is not None and now - asked > STATUS_S:
                self._ask(run_id)
                asked = time.monotonic()
            state = self._tell(show, run_id)
            if state != before:
                before, moved = state, now
            elif now - moved > patience:
                raise HffmError(
                    f"nothing has moved for {patience:.0f} s; see {self.processes.logs}"
                )
            time.sleep(TICK_S)
        self._tell(show, run_id)
        self._wait_for_edges()
        result = self.files.result()
        if result["status"] != "finished":
            raise HffmError(str(result.get("reason") or result["status"]))

    def _start_nodes(self) -> None:
        """Start the nodes whose keys are registered."""
        for link, node in self._waiting[:]:
            if link.ready():
                self.processes.start(node)
                self._waiting.remove((link, node))

    def _may_begin(self, waited_s: float) -> bool:
        """Whether the edges are there for the cloud, or have had their time."""
        here = all(edge.open or edge.given_up for edge in self.edges)
        return here or waited_s > self.config.server.deadline_s

    def _ask(self, run_id: int) -> None:
        """Ask the SuperLink for the cloud's run.

        Raises:
            HffmError: It has ended without a result.
        """
        try:
            run = self.flwr.status(CLOUD, run_id)
        except HffmError as error:
            log.warning("cloud: %s", error)
            return
        if run.over and not self.files.has_result():
            raise HffmError(f"the cloud's run ended, {run.status}: {run.details}")

    def _tell(self, show: Show, run_id: int | None) -> tuple[object, ...]:
        """Tell of what is up and of finished rounds; what was told."""
        names = self.processes.names()
        running = [n for n in names if self.processes.running(n)]
        online = sum(self._is_online(node.name) for node in self.nodes)
        phase = "training" if run_id else "starting"
        of = len(names) + len(self._waiting)
        show({"event": "tree", "up": len(running), "of": of, "online": online,
              "nodes": len(self.nodes), "phase": phase})  # fmt: skip
        for report in self._rounds()[self._shown :]:
            show(_round_event(report, self._tasks))
            self._shown += 1
        return (len(running), online, self._shown, run_id, tuple(e.run_id for e in self.edges))

    def begun(self) -> dict[str, int]:
        """The edge round that every edge is in; without edges, the cloud; 0: no run yet."""
        if not self._at_work:
            return dict.fromkeys([f"edge/{i}" for i in range(len(self.edges))] or [CLOUD], 0)
        if not self.edges:
            return {CLOUD: len(self._rounds()) + 1}
        return {f"edge/{i}": self._edge_round(i) for i in range(len(self.edges))}

    def _edge_round(self, index: int) -> int:
        from strategies.edge_state import saved_round

        done = self._done.get(index, 0)
        for path in self._state.glob(f"*/edge-{index}.safetensors"):
            with contextlib.suppress(ModuleError):  # it was removed: the edge has ended
                done = max(done, saved_round(path))
        self._done[index] = done
        return min(done + 1, self.config.rounds)

    def _rounds(self) -> list[RoundReport]:
        return self.files.rounds() if (self.files.root / "rounds.jsonl").exists() else []

    def _is_online(self, name: str) -> bool:
        """Whether a node has reported to its SuperLink in this life of it."""
        if not self.processes.running(name):
            return False
        starts = self.processes.starts(name)
        if self._online.get(name) != starts:
            said = self.processes.text(name)
            if said.count("is online") + said.count("SuperNode ID:") < starts:
                return False
            self._online[name] = starts
        return True

    def _wait_for_edges(self) -> None:
        until = time.monotonic() + SAVE_S
        while time.monotonic() < until:
            if all(e.over or self._edge_file(i).exists() for i, e in enumerate(self.edges)):
                return
            time.sleep(TICK_S)
        log.warning("not every edge has saved its modules")

    def _edge_file(self, index: int) -> Path:
        return RunFiles(self.processes.scratch / "out" / f"edge-{index}").edge(index)

    def stop(self) -> None:
        """Ask the cloud's ServerApp to save what is finished and end; the edges follow."""
        with hurried() as hurry:
            for app in self.processes.apps("cloud-superlink"):
                with contextlib.suppress(psutil.NoSuchProcess):
                    app.terminate()
            until = time.monotonic() + SAVE_S
            while self.processes.apps("cloud-superlink") and time.monotonic() < until:
                if hurry.wait(0.1) or self.files.has_result():
                    break

    def collect(self) -> None:
        """Bring what edges and devices have saved into the run's folder."""
        for index in range(len(self.edges)):
            if self._edge_file(index).exists():
                target = self.files.edge(index)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(self._edge_file(index), target)
        for run in sorted(self._state.glob("*"), key=lambda p: p.stat().st_mtime):
            shutil.copytree(run, self.files.root / STATE / "last", dirs_exist_ok=True)
        (self.files.root / "rounds.jsonl").touch()


def _round_event(report: RoundReport, tasks: Mapping[str, TaskFacts]) -> Mapping[str, object]:
    loss = report.loss_sum / max(1, report.trained)
    return {"event": "round", "t": report.t, "loss": loss, "mean_global": means(report, tasks),
            "devices": len(report.devices), "dropped": len(report.dropped)}  # fmt: skip


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Meanwhile this package's log goes to a file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("hffm_flower.session")
    level, root.level = root.level, logging.INFO
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
