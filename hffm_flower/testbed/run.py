"""A federation on a tree whose links are the radio model's, under a scenario."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Final

from hffm_flower.config import RunConfig
from hffm_flower.errors import HffmError, Interrupted
from hffm_flower.runfiles import RunFiles
from hffm_flower.session.deployment import TICK_S, up
from hffm_flower.session.local_roles import Kind
from hffm_flower.session.plan import Plan
from hffm_flower.session.processes import Processes
from hffm_flower.session.worker import Show
from hffm_flower.testbed.air import Air
from hffm_flower.testbed.containers import Attached
from hffm_flower.testbed.control import Carried
from hffm_flower.testbed.hosts import (
    NamespaceHosts,
    check_emulator,
    nodes_of,
    start_emulator,
)
from hffm_flower.testbed.measure import read_timings
from hffm_flower.testbed.report import Outcome
from hffm_flower.testbed.scenario import Scenario
from hffm_flower.tree import plant

TIMINGS: Final = "timings"
LOOK_S: Final = 2.0
"""Time between two looks whether containers were started again [s]."""


def run_scenario(
    name: str, scenario: Scenario, config: RunConfig, plan: Plan, files: RunFiles,
    show: Show, *, insecure: bool = False,
) -> Outcome:  # fmt: skip
    """Bring the tree up under a scenario, run the federation, and say what came of it.

    A run that fails is an outcome.

    Raises:
        Interrupted: The user asked to stop; what was done until then is written.
    """
    network, reason, failed = plant(config), "", False
    stopped: Interrupted | KeyboardInterrupt | None = None
    timings = files.root / TIMINGS
    with NamespaceHosts(network, scenario, timings) as hosts:
        try:
            up(config, plan, files, show, Kind(insecure=insecure, hosts=hosts))
        except (Interrupted, KeyboardInterrupt) as error:
            stopped, reason = error, str(error) or "stopped on request"
        except HffmError as error:
            reason, failed = str(error), True
        events = hosts.air.events if hosts.air else []
    if stopped is not None and not files.has_result():
        raise stopped
    messages = read_timings(timings, network) if timings.exists() else []
    outcome = Outcome.of_run(name, files, reason, messages, hosts.carried)
    if failed:  # the cloud itself may only know that it was stopped
        outcome = dataclasses.replace(outcome, status="failed")
    outcome.write(scenario, events)
    if stopped is not None:
        raise stopped
    return outcome


def shape_containers(
    project: str, name: str, scenario: Scenario, config: RunConfig, folder: Path, show: Show
) -> Outcome:
    """Shape the links of a Compose project's containers until the run in it is over.

    Ctrl-C ends it too. The links are as they were before, afterwards.

    Raises:
        ConfigError: A container is not there.
    """
    network, carried = plant(config), Carried(0.0, 0, {})
    with Processes(folder / "logs") as processes, start_emulator(
        processes, network.seed
    ) as control:  # fmt: skip
        air = Air(network, scenario, control)
        tree = Attached(project, nodes_of(network), control)
        told, looked_s, seen = 0, time.monotonic(), False
        try:
            while (begun := tree.begun()) is not None or not seen:
                check_emulator(processes)
                if begun is not None:
                    seen = True
                    air.follow({node: min(t, config.rounds) for node, t in begun.items()})
                for event in air.events[told:]:
                    show(event)
                told, carried = len(air.events), control.carried()
                if time.monotonic() - looked_s > LOOK_S:
                    tree.refresh()
                    looked_s = time.monotonic()
                time.sleep(TICK_S)
        except KeyboardInterrupt:
            show({"event": "stopping"})
        finally:
            tree.timings(folder / TIMINGS)
    messages = tuple(read_timings(folder / TIMINGS, network))
    outcome = Outcome(name, folder, "shaped", messages=messages, carried=carried)
    outcome.write(scenario, air.events)
    return outcome
