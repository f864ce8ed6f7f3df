"""A federation on a tree whose links are the radio model's, once for every scenario."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from hffm_flower.config import RunConfig
from hffm_flower.errors import HffmError, Interrupted
from hffm_flower.runfiles import RunFiles
from hffm_flower.session.deployment import up
from hffm_flower.session.local_roles import Kind
from hffm_flower.session.preflight import Plan
from hffm_flower.session.worker import Show
from hffm_flower.testbed.control import Carried
from hffm_flower.testbed.hosts import NamespaceHosts
from hffm_flower.testbed.measure import Timed, read_timings
from hffm_flower.testbed.scenario import Scenario
from hffm_flower.tree import plant

REPORT: Final = "testbed.json"
TIMINGS: Final = "timings"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run under a scenario came to.

    Attributes:
        scenario: Its name.
        folder: Of the run.
        status: ``finished`` or ``failed``.
        reason: Why it failed.
        rounds: Edge rounds that were finished.
        void: In how many an edge had too few answers.
        dropped: Answers that did not come or could not be used.
        accuracy: Mean over the tasks, at the end.
        seconds: From the beginning to the end of the last edge round [s].
        modelled_s: The same by the radio model [s].
        messages: What was timed.
        carried: What the emulator did.
    """

    scenario: str
    folder: Path
    status: str
    reason: str
    rounds: int
    void: int
    dropped: int
    accuracy: float | None
    seconds: float
    modelled_s: float
    messages: tuple[Timed, ...]
    carried: Carried | None


def run_scenario(
    name: str, scenario: Scenario, config: RunConfig, plan: Plan, files: RunFiles,
    show: Show, *, stock: bool = False, insecure: bool = False,
) -> Outcome:  # fmt: skip
    """Bring the tree up under a scenario, run the federation, and say what came of it.

    A run that fails is an outcome; only an interruption is raised.

    Raises:
        Interrupted: The user asked to stop.
    """
    network, reason = plant(config), ""
    timings = files.root / TIMINGS
    with NamespaceHosts(network, scenario, timings) as hosts:
        try:
            up(config, plan, files, show, Kind(stock, insecure, hosts))
        except Interrupted:
            raise
        except HffmError as error:
            reason = str(error)
        messages = tuple(read_timings(timings, network)) if timings.exists() else ()
        outcome = _outcome(name, files, reason, messages, hosts.carried)
        events = hosts.air.events if hosts.air else []
    report = {
        **asdict(outcome), "folder": str(files.root),
        "faults": [fault.model_dump(by_alias=True, exclude_none=True) for fault in scenario],
        "events": events, "messages": [message.to_json() for message in messages],
        "carried": _carried(hosts.carried),
    }  # fmt: skip
    (files.root / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return outcome


def _outcome(
    name: str, files: RunFiles, reason: str, messages: tuple[Timed, ...], carried: Carried | None
) -> Outcome:
    result, reports = files.result(), files.rounds()
    summary = result.get("summary")
    accuracy = summary.get("mean_global") if isinstance(summary, Mapping) else None
    return Outcome(
        name, files.root, str(result["status"]), reason, len(reports),
        sum(len(r.void) for r in reports), sum(len(r.dropped) for r in reports), accuracy,
        reports[-1].seconds if reports else 0.0, sum(r.latency_s for r in reports),
        messages, carried,
    )  # fmt: skip


def _carried(carried: Carried | None) -> dict[str, object]:
    if carried is None:
        return {}
    links = [{"src": a, "dst": b, **asdict(c)} for (a, b), c in carried.links.items()]
    return {"cpu_s": carried.cpu_s, "packets": carried.packets, "links": links}
