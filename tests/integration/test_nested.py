"""A deployed tree in one process: edges behind gateways, over grids of their own devices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from clients import client_app, edge_proxy
from hffm_flower.config import RunConfig
from hffm_flower.ledger import LinkClass, Phase, traffic
from hffm_flower.records import read_state, to_bytes
from hffm_flower.runfiles import RunFiles
from hffm_flower.tree import plant
from strategies.cloud_tier import CloudTier
from strategies.edge_tier import EdgeTier, serve_edge
from strategies.federate import federate
from tests.support.fake_grid import FIRST_NODE, FakeGrid
from tests.support.played import play


class Cluster(FakeGrid):
    """The devices of one edge."""

    members: tuple[int, ...] = ()

    def get_node_ids(self) -> Iterable[int]:
        return [FIRST_NODE + k for k in self.members]


class Upstream(FakeGrid):
    """Edges' nodes, each knowing its gateway."""

    def at(self, ports: list[int]) -> Upstream:
        for edge, port in enumerate(ports):
            config = self.contexts[FIRST_NODE + edge].node_config
            config["gateway"], config["insecure"] = f"127.0.0.1:{port}", True
        return self


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_edges(
    config: RunConfig, serve: Callable[[Cluster, RunConfig], None]
) -> tuple[list[int], list[threading.Thread]]:
    """All edges of a run, each served in a thread; their gateways' ports, and the threads."""
    ports, threads = [], []
    for index, cluster in enumerate(plant(config).topology.clusters):
        ports.append(free_port())
        own = config.with_values(
            deploy__tier="edge", deploy__edge=index, deploy__insecure=True,
            deploy__gateway=f"127.0.0.1:{ports[-1]}",
        )  # fmt: skip
        grid = Cluster(client_app.app, config.tree.devices, own.to_flwr())
        grid.members = cluster
        threads.append(threading.Thread(target=serve, args=(grid, own)))
        threads[-1].start()
    return ports, threads


@contextmanager
def edges(config: RunConfig, out: Path) -> Iterator[list[int]]:
    """All edges of a run, while it lasts; gives their gateways' ports."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def serve(grid: Cluster, own: RunConfig) -> None:
        try:
            serve_edge(grid, own, RunFiles(out), stop=stop)
        except BaseException as error:
            errors.append(error)

    ports, threads = start_edges(config, serve)
    try:
        yield ports
        ended(threads)
    finally:
        stop.set()
        ended(threads)
    assert not errors, errors


def ended(threads: Iterable[threading.Thread]) -> None:
    for thread in threads:
        thread.join(20)


def deployed(config: RunConfig, out: Path) -> RunFiles:
    files = RunFiles.create(out)
    cloud = config.with_values(deploy__tier="cloud", deploy__insecure=True)
    with edges(config, out) as ports:
        grid = Upstream(edge_proxy.app, config.tree.edges, cloud.to_flwr()).at(ports)
        federate(grid, cloud, files)
    return files


def bits(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): to_bytes(read_state(p))
        for p in sorted(folder.rglob("*.safetensors"))
        if ".state" not in str(p)
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"tree__period": 2, "rounds": 4},
        {"method": "edge-only", "rounds": 3},
        {"rounds": 3, "server__modules": "head/*=device prompt/*=edge"},
        {"rounds": 4, "server__fraction": 0.5, "server__optimizer": "*=adam:0.05"},
    ],
    ids=["h-fedfm", "edge-only", "personal", "adam"],
)
def test_a_deployed_tree_gives_the_bits_of_the_simulation(
    tiny: RunConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = tiny.with_values(**changes)
    simulated = play(config, tmp_path / "simulated")
    assert simulated.error is None
    again = config.with_values(paths__state=str(tmp_path / "state-2"))
    files = deployed(again, tmp_path / "deployed")
    assert bits(files.root) == bits(simulated.files.root)
    result = files.result()
    assert result["status"] == "finished"
    ours, theirs = result["summary"], simulated.result["summary"]
    assert isinstance(ours, dict)
    for figure in ("mean_global", "mean_personal", "bytes", "per_task", "uncovered"):
        assert ours[figure] == theirs[figure], figure
    assert result["idle_devices"] == simulated.result["idle_devices"]
    setup = [
        sorted(
            (row.link, row.src, row.dst)  # bytes differ: each edge asks its own for modules
            for row in each.transfers()[0] if row.link != LinkClass.BACKHAUL
        )
        for each in (simulated.files, files)
    ]  # fmt: skip
    assert setup[0] == setup[1] != []
    for t, rows in simulated.files.transfers().items():
        if t:
            assert traffic(rows) == traffic(files.transfers()[t]) or _only_reports_differ(
                rows, files.transfers()[t]
            )


def _only_reports_differ(simulated: Iterable[Any], deployed: Iterable[Any]) -> bool:
    """A deployed edge's report carries its ledger: only that header is longer."""
    left = [r for r in simulated if r.phase is not Phase.COLLECT]
    right = [r for r in deployed if r.phase is not Phase.COLLECT]
    same = {k: v[0] for k, v in traffic(simulated).items()} == {
        k: v[0] for k, v in traffic(deployed).items()
    }
    return same and traffic(left) == traffic(right)


def test_an_edge_that_was_restarted_goes_on_from_its_state(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.with_values(rounds=4, tree__period=4, method="h-fedfm")
    simulated = play(config, tmp_path / "simulated")
    again = config.with_values(paths__state=str(tmp_path / "state-2"))
    real = EdgeTier._on_round
    broken: list[int] = []

    class Killed(BaseException):
        pass

    def on_round(self: EdgeTier, report: Any) -> None:
        real(self, report)
        if self.index == 1 and report.t == 2 and not broken:
            broken.append(report.t)
            raise Killed

    monkeypatch.setattr(EdgeTier, "_on_round", on_round)
    out = tmp_path / "deployed"
    files = RunFiles.create(out)
    cloud = again.with_values(deploy__tier="cloud", deploy__insecure=True)

    def supervise(grid: Cluster, own: RunConfig) -> None:
        while True:
            try:
                serve_edge(grid, own, RunFiles(out), stop=threading.Event())
            except Killed:
                continue
            return

    ports, threads = start_edges(again, supervise)
    federate(Upstream(edge_proxy.app, 2, cloud.to_flwr()).at(ports), cloud, files)
    ended(threads)
    assert broken == [2]
    assert bits(out) == bits(simulated.files.root)
    assert [r.t for r in files.rounds()] == [1, 2, 3, 4]


def test_an_edge_leaves_a_run_that_was_lost_for_the_next_one(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.with_values(rounds=2, tree__period=1, method="h-fedfm")
    simulated = play(config, tmp_path / "simulated")
    again = config.with_values(paths__state=str(tmp_path / "state-2"))

    def serve_twice(grid: Cluster, own: RunConfig) -> None:
        for number in range(2):
            settings = own.with_values(deploy__run=f"life-{number}")
            files = RunFiles(tmp_path / f"edges-{number}")
            serve_edge(grid, settings, files, stop=threading.Event())

    ports, threads = start_edges(again, serve_twice)

    def run_of_the_cloud(number: int) -> RunFiles:
        files = RunFiles.create(tmp_path / f"run-{number}")
        cloud = again.with_values(deploy__tier="cloud", deploy__insecure=True)
        grid = Upstream(edge_proxy.app, 2, cloud.to_flwr()).at(ports)
        for context in grid.contexts.values():
            context.run_id = number
        federate(grid, cloud, files)
        return files

    class Lost(Exception):
        pass

    def lost(self: CloudTier, *words: object) -> None:
        raise Lost("the SuperLink is gone")

    with monkeypatch.context() as patch:
        patch.setattr(CloudTier, "_on_round", lost)
        patch.setattr(CloudTier, "_end", lambda *words: None)  # nobody tells the edges
        with pytest.raises(Lost):
            run_of_the_cloud(1)
    result = RunFiles(tmp_path / "run-1").result()
    assert (result["status"], result["reason"]) == ("failed", "Lost: the SuperLink is gone")
    files = run_of_the_cloud(2)
    ended(threads)
    assert not any(thread.is_alive() for thread in threads)
    assert files.result()["status"] == "finished"
    model = (files.root / "model.safetensors").read_bytes()
    assert model == (simulated.files.root / "model.safetensors").read_bytes()


def test_messages_without_credentials_are_refused(tiny: RunConfig) -> None:
    grid = Upstream(edge_proxy.app, 1, tiny.to_flwr()).at([1])
    del grid.contexts[FIRST_NODE].node_config["insecure"]
    from tests.unit.strategies.test_grids import ask

    (name,) = grid.push_messages([_kind(ask(FIRST_NODE), "query.profile")])
    (reply,) = grid.pull_messages([name])
    assert reply.has_error()
    assert "certificates" in str(reply.error.reason)


def _kind(message: Message, kind: str) -> Message:
    message.metadata.message_type = kind
    return message
