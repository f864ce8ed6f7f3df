"""A run that was handed in, followed to its end from the folder that it fills."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from hffm_flower.config import RunConfig
from hffm_flower.errors import HffmError
from hffm_flower.report import RoundReport
from hffm_flower.runfiles import ROUNDS, RunFiles
from hffm_flower.session.bundle import Flwr
from hffm_flower.session.roles import CloudRole
from hffm_flower.session.tiers import STATUS_S

TICK_S = 0.5
START_S = 300.0
"""How long a tree may take to start, beside ``server.deadline-s`` [s]."""
UNHEARD = 3
"""A cloud that does not answer so many times is lost."""


def patience_s(config: RunConfig) -> float:
    """How long nothing may move in a run that goes well [s]."""
    return START_S + 4 * config.server.deadline_s * max(1, config.tree.period)


def follow(
    role: CloudRole, run_id: int, files: RunFiles, show: Callable[[RoundReport], None],
    *, config: RunConfig, home: Path,
) -> None:  # fmt: skip
    """Wait for the end of a run of a cloud that is up.

    Args:
        role: The cloud's.
        run_id: Flower's id of the run.
        files: The folder that it fills.
        show: Told of each edge round.
        config: Settings of the run.
        home: A folder for Flower's own settings.

    Raises:
        HffmError: The run has failed, nothing moves in it, or the cloud is lost.
    """
    flwr = Flwr(home)
    flwr.connect("cloud", role.superlink, role.authority)
    shown = unheard = 0
    asked = moved = time.monotonic()
    while True:
        over = files.has_result()  # looked at first: the last rounds are there by then
        reports = files.rounds() if (files.root / ROUNDS).exists() else []
        for report in reports[shown:]:
            show(report)
        now = time.monotonic()
        if len(reports) != shown:
            shown, moved = len(reports), now
        if over:
            break
        if now - asked > STATUS_S:
            silence = _ask(flwr, run_id, files)
            asked, unheard = time.monotonic(), unheard + 1 if silence else 0
            if unheard == UNHEARD:
                raise HffmError(f"the cloud is lost, silent {UNHEARD} times: {silence}")
        if now - moved > patience_s(config):
            raise HffmError(f"nothing has moved in run {run_id} for {now - moved:.0f} s")
        time.sleep(TICK_S)
    result = files.result()
    if result["status"] != "finished":
        raise HffmError(f"run {run_id}: {result.get('reason') or result['status']}")


def _ask(flwr: Flwr, run_id: int, files: RunFiles) -> str:
    """Ask the cloud whether a run goes on; why it does not answer, empty if it does.

    Raises:
        HffmError: The run has ended without a result.
    """
    try:
        run = flwr.status("cloud", run_id)
    except HffmError as error:
        return str(error)
    if (run.over or run.status == "unknown") and not files.has_result():
        raise HffmError(f"run {run_id} has ended, {run.status}: {run.details or 'no reason given'}")
    return ""
