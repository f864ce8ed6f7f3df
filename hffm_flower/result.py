"""``result.json``: what a run was, and the figures it ends with."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version

from hffm_flower.config import RunConfig
from hffm_flower.ledger import LinkClass
from hffm_flower.modules import ModuleKind
from hffm_flower.profile import NodeProfile
from hffm_flower.report import TIERS, RoundReport, Score, TaskFacts, accuracy, mean_accuracy
from hffm_flower.tasks import TASKS, definitions, spec_of
from hffm_flower.version import __version__


def task_facts(tasks: Iterable[str], profiles: Iterable[NodeProfile]) -> dict[str, TaskFacts]:
    """What is needed to turn counts into accuracies.

    Raises:
        ConfigError: A task is not known here.
    """
    known, specs = list(profiles), {task: spec_of(task) for task in tasks}
    return {
        task: TaskFacts(
            chance=spec.chance,
            classes=bool(spec.answers),
            expected=sum(p.tests.get(task, 0) for p in known),
            hit=TASKS[task].hit,
            measure=TASKS[task].measure,
            measure_chance=TASKS[task].measure_chance,
        )
        for task, spec in specs.items()
    }


def carried(profiles: Iterable[NodeProfile]) -> dict[str, object]:
    """What each device carries in the backbone, as a note of the result; none where all alike."""
    told = {
        str(p.index): {"lora_rank": p.rank, "experts": list(p.experts)}
        for p in profiles
        if p.rank or p.experts
    }
    return {"carried": told} if told else {}


def means(report: RoundReport, tasks: Mapping[str, TaskFacts]) -> dict[str, float]:
    """IID mean accuracy of every tier that was evaluated in a round."""
    return {
        tier: mean_accuracy(splits["iid"], tasks)
        for tier, splits in report.scores.items()
        if "iid" in splits
    }


def build(
    config: RunConfig,
    reports: list[RoundReport],
    tasks: Mapping[str, TaskFacts],
    *,
    cycle: int,
    status: str,
    reason: str = "",
    notes: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """The content of ``result.json``.

    Args:
        config: The run's settings.
        reports: Finished edge rounds.
        tasks: Facts of every task of the run.
        cycle: Longest period of a module [edge rounds].
        status: ``finished``, ``interrupted`` or ``failed``.
        reason: Why it is not finished.
        notes: More entries, e.g. the idle devices.
    """
    return {
        "config": config.to_flwr(),
        "seed": config.seed,
        "versions": versions(),
        "tasks": definitions(config.data.tasks),
        "status": status,
        "reason": reason,
        "rounds": [
            {
                "t": r.t,
                "loss": r.loss_sum / max(1, r.trained),
                "devices": len(r.devices),
                "dropped": len(r.dropped),
                "seconds": r.seconds,
                "latency_s": finite(r.latency_s),
                "energy_j": finite(r.energy_j),
                "bytes": {link: amount[0] for link, amount in r.traffic.items()},
                "mean_global": means(r, tasks),
            }
            for r in reports
        ],
        "summary": summarise(reports, tasks, cycle=cycle) if tasks else {},
        **(notes or {}),
    }


def finite(cost: float) -> float | None:
    """``cost`` for JSON; nothing where a link of rate 0 made it infinite."""
    return cost if math.isfinite(cost) else None


def versions() -> dict[str, str]:
    """Versions of what a result depends on; packages that are not there are left out."""
    found = {"hffm-flower": __version__, "python": platform.python_version()}
    for package in ("flwr", "torch", "transformers", "ray", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def highest_tier(reports: Iterable[RoundReport]) -> str:
    """Highest tier that was evaluated in ``reports``."""
    seen = {tier for report in reports for tier in report.scores}
    return next((tier for tier in TIERS if tier in seen), "device")


def summarise(
    reports: list[RoundReport], tasks: Mapping[str, TaskFacts], *, cycle: int
) -> dict[str, object]:
    """Closing figures of a run.

    ``mean_global`` is the IID accuracy, after the last edge round, of the highest tier the
    method has, pooled by examples; ``mean_global_cycle`` the mean of the edge models over
    the last cloud cycle, which a method cannot tune by when it is read. ``latency_s`` and
    ``energy_j`` are means over the edge rounds, ``bytes`` sums over the run, by class of links;
    ``kind_bytes`` are the same bytes by kind of module. ``per_task`` is the share of right answers,
    of what ``hit`` says; ``measures`` has the finer figures, and ``chance`` what is reached without
    looking at the inputs.
    """
    tier = highest_tier(reports)
    final = next((r for r in reversed(reports) if tier in r.scores), RoundReport(0))
    splits = final.scores.get(tier, {})
    iid, skewed, guess = (splits.get(s, {}) for s in ("iid", "skewed", "guess"))
    expected = sum(f.expected for f in tasks.values())
    covered = sum(iid[t].total for t in tasks if t in iid)
    last = reports[-1].t if reports else 0
    lower = next((t for t in ("edge", "device") if any(t in r.scores for r in reports)), tier)
    cycle_means = [
        mean_accuracy(r.scores[lower]["iid"], tasks)
        for r in reports
        if r.t > last - cycle and "iid" in r.scores.get(lower, {})
    ]
    return {
        "tier": tier,
        "t": final.t,
        "mean_global": mean_accuracy(iid, tasks),
        "mean_personal": mean_accuracy(skewed, tasks),
        "cycle_tier": lower,
        "mean_global_cycle": sum(cycle_means) / len(cycle_means) if cycle_means else None,
        "per_task": {t: accuracy(iid.get(t, Score()), f) for t, f in tasks.items()},
        "hit": {t: f.hit for t, f in tasks.items()},
        "chance": {
            t: guess[t].correct / guess[t].total if t in guess else f.chance
            for t, f in tasks.items()
        },
        "measures": {
            t: {
                "name": f.measure,
                "value": iid[t].value / iid[t].total,
                "chance": guess[t].value / guess[t].total if t in guess else f.measure_chance,
            }
            for t, f in tasks.items()
            if f.measure and t in iid and iid[t].total
        },
        "synthetic": [t for t in tasks if t in TASKS and TASKS[t].synthetic],
        "expected": {t: f.expected for t, f in tasks.items()},
        "uncovered": 1.0 - covered / expected if expected else 1.0,
        "dropped": sum(len(r.dropped) for r in reports),
        "void": sum(len(r.void) for r in reports),
        "latency_s": finite(sum(r.latency_s for r in reports) / max(1, len(reports))),
        "energy_j": finite(sum(r.energy_j for r in reports) / max(1, len(reports))),
        "bytes": {link: sum(r.bytes_over(link) for r in reports) for link in LinkClass},
        "kind_bytes": {kind: sum(r.kinds.get(kind, 0) for r in reports) for kind in ModuleKind},
        "header_bytes": {
            link: sum(r.traffic.get(link, [0, 0])[1] for r in reports) for link in LinkClass
        },
    }
