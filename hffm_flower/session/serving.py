"""One role of a tree on this machine, in the foreground until a signal comes."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from hffm_flower.runfiles import HANDED_IN, RESULT, ROUNDS, RunFiles
from hffm_flower.schedule import METHODS
from hffm_flower.session.bundle import Flwr, shown, to_toml
from hffm_flower.session.processes import Processes, Program, listening
from hffm_flower.session.role import Role
from hffm_flower.session.roles import CloudRole, DeviceRole, EdgeRole, LinkRole
from hffm_flower.session.tiers import EdgeRun, Link

log = logging.getLogger(__name__)

TICK_S = 0.5
STOCK = "127.0.0.1:9094"
"""Where a stock node has its runtime interface unless it is told otherwise."""
ALIVE = "HFFM_ALIVE"
"""Environment variable with the name of a file that a role touches while it does its work."""


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
        online = _start_node(processes, role, "edge-node")

        def works() -> bool:
            run.tick()
            return link.ready() and online() and run.run_id is not None

        _look_after(processes, works)


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
        _look_after(processes, _start_node(processes, role, "device"))


def _start_node(processes: Processes, role: EdgeRole | DeviceRole, name: str) -> Callable[[], bool]:
    """Start a role's node; whether the tier above knows it, which a stock node does not tell."""
    program = _lasting(role.node(name))
    if role.stock_node:
        processes.start(program)
        return lambda: True
    online = processes.scratch / "online"
    processes.start(replace(program, argv=(*program.argv, "--online", str(online))))
    return online.exists


def _lasting(program: Program) -> Program:
    return replace(program, restarts=1000)


def _look_after(processes: Processes, works: Callable[[], bool]) -> NoReturn:
    """Keep the programs up, and show that they are and that ``works``; asked twice a second.

    Raises:
        HffmError: A program cannot be kept up.
        ConfigError: It cannot work with what it was given, or the sign of life has no place.
    """
    sign = Path(os.environ[ALIVE]) if os.environ.get(ALIVE) else None
    if sign is not None and not sign.parent.is_dir():
        raise ConfigError(f"{ALIVE}: {str(sign)!r} is not a file in a folder that exists")
    while True:
        processes.look_after()
        if works() and sign is not None and all(map(processes.running, processes.names())):
            sign.touch()
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


def check_deployable(config: RunConfig) -> None:
    """Refuse what only a simulation can do.

    Raises:
        ConfigError: The method has no federation.
    """
    if METHODS[config.method].pooled:
        able = ", ".join(name for name, m in METHODS.items() if not m.pooled)
        raise ConfigError(
            f"{config.method!r} pools all data and has nothing to deploy; allowed: {able}",
            key="method",
        )


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
