"""One role of a tree on this machine, in the foreground until a signal comes."""

from __future__ import annotations

import logging
import secrets
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from hffm_flower.runfiles import HANDED_IN, RESULT, ROUNDS, RunFiles
from hffm_flower.session.bundle import Flwr, shown, to_toml
from hffm_flower.session.processes import Processes, Program, listening
from hffm_flower.session.role import Role
from hffm_flower.session.roles import CloudRole, DeviceRole, EdgeRole, LinkRole
from hffm_flower.session.tiers import EdgeRun, Link

log = logging.getLogger(__name__)

TICK_S = 0.5
STOCK = "127.0.0.1:9094"
"""Where a stock node has its runtime interface unless it is told otherwise."""


def commands(role: Role, config: RunConfig | None = None) -> Iterator[str]:
    """Flower's own commands that would do what this role does, but for the guard."""
    if isinstance(role, LinkRole):
        yield shown(role.link_programs("")[0].argv)
        for key in role.public_keys():
            yield f"flwr supernode register {shlex.quote(str(key))} here"
    if isinstance(role, EdgeRole | DeviceRole):
        yield shown(role.model_copy(update={"stock_node": role.stock_node or STOCK}).node("").argv)
    if isinstance(role, EdgeRole) and config is not None:
        words = " ".join(to_toml(edge_settings(role, config, 0)).replace(" = ", "=").splitlines())
        yield f"flwr run . here --run-config {shlex.quote(words)}"


def edge_settings(role: EdgeRole, config: RunConfig, number: int) -> dict[str, object]:
    """What differs from the defaults in the run of an edge's ServerApp."""
    default = RunConfig().to_flwr()
    changed = {k: v for k, v in config.to_flwr().items() if v != default[k]}
    state = {"paths.state": role.state} if role.state else {}
    return {**changed, **role.settings(), **state, "paths.out": str(Path(role.out) / str(number))}


def serve_cloud(role: CloudRole) -> NoReturn:
    """Be the cloud: a SuperLink and its guard. Runs are handed in by ``hffm submit``."""
    check_free(role)
    with Processes(None) as processes:
        link = Link("cloud", role, processes, Flwr(processes.scratch / "flwr"), restarts=1000)
        link.start()
        _look_after(processes, link.ready)


def serve_edge(role: EdgeRole, config: RunConfig) -> NoReturn:
    """Be an edge: a SuperLink, its guard, a node of the cloud, and one run after another."""
    check_free(role)
    with Processes(None) as processes:
        flwr = Flwr(processes.scratch / "flwr")
        link = Link("edge", role, processes, flwr, restarts=1000)
        first, life = _first_free(Path(role.out)), secrets.token_hex(4)

        def settings(number: int) -> dict[str, object]:
            """The same for every retry, so that devices find what they have kept."""
            own = edge_settings(role, config, first + number)
            return {**own, "deploy.run": f"{life}-{number}"}

        run = EdgeRun(
            link, role.gateway, settings, flwr,
            retries=None, runs=None,
        )  # fmt: skip
        link.start()
        processes.start(_lasting(role.node("edge-node")))
        _look_after(processes, run.tick)


def check_free(role: LinkRole) -> None:
    """Refuse addresses where somebody else listens: theirs is not the SuperLink that we mean.

    Raises:
        ConfigError: There is one; it is named.
    """
    for name in ("listen", "superlink", *(["gateway"] if isinstance(role, EdgeRole) else [])):
        address = str(getattr(role, name))
        host, _, port = address.rpartition(":")
        here = f"127.0.0.1:{port}" if host in ("0.0.0.0", "[::]") else address
        if listening(here):
            raise ConfigError(f"{name}: somebody listens on {address} already", key=name)


def serve_device(role: DeviceRole) -> NoReturn:
    """Be a device."""
    with Processes(None) as processes:
        processes.start(_lasting(role.node("device")))
        _look_after(processes, lambda: None)


def _lasting(program: Program) -> Program:
    return Program(program.name, program.argv, restarts=1000)


def _look_after(processes: Processes, tick: Callable[[], object]) -> NoReturn:
    while True:
        processes.look_after()
        tick()
        for name in processes.names():
            if processes.given_up(name):
                raise processes.loss(name)
        time.sleep(TICK_S)


def _first_free(out: Path) -> int:
    """Number of the first run whose folder holds nothing."""
    number = 0
    while any((out / str(number) / n).exists() for n in (RESULT, ROUNDS, "edges")):
        number += 1
    return number


def submit(
    role: CloudRole, config: RunConfig, take: Callable[[], RunFiles], home: Path
) -> tuple[int, RunFiles]:
    """Hand a run in to a cloud that is up; its id, and the folder that it fills.

    Args:
        role: The cloud's.
        config: Settings of the run.
        take: Takes the folder, once it is known that the cloud is free.
        home: A folder for Flower's own settings.

    Raises:
        ConfigError: A run is at work there: its edges serve one at a time.
    """
    flwr = Flwr(home)
    flwr.connect("cloud", role.superlink, role.authority)
    busy = [run.run_id for run in flwr.runs("cloud") if not run.over]
    if busy:
        raise ConfigError(f"run {busy[0]} is at work there; wait for its end, or hffm stop it")
    files = take()
    changed = {
        **config.to_flwr(), "paths.out": str(files.root.resolve()),
        "deploy.tier": "sim" if config.flat else "cloud",
        "deploy.certificates": role.certificates, "deploy.insecure": role.insecure,
    }  # fmt: skip
    files.leave_to_app()
    try:
        return flwr.run("cloud", changed), files
    except BaseException:
        (files.root / HANDED_IN).unlink(missing_ok=True)
        raise
