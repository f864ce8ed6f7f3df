from __future__ import annotations

import json
import math
from typing import Any

import pytest

from hffm_flower.config import RunConfig
from hffm_flower.profile import NodeProfile
from hffm_flower.report import RoundReport, Score, TaskFacts
from hffm_flower.result import build, highest_tier, means, summarise, task_facts

FACTS = {
    "a": TaskFacts(0.1, True, 10),
    "box": TaskFacts(0.0, False, 4, "IoU > 0.5", "mean IoU"),
}


def row(t: int, **tiers: int) -> RoundReport:
    """Edge round ``t`` with so many right answers of 10 per tier."""
    report = RoundReport(t, trained=4, loss_sum=2.0)
    for tier, correct in tiers.items():
        report.add_score(tier, "iid", "a", Score(correct, 10, correct))
    return report


def summary(reports: list[RoundReport], cycle: int = 1) -> dict[str, Any]:
    return summarise(reports, FACTS, cycle=cycle)


def test_the_highest_tier_is_the_one_that_the_method_has() -> None:
    assert highest_tier([row(1, edge=1), row(2, edge=1, cloud=1)]) == "cloud"
    assert highest_tier([row(1, edge=1), row(2, device=1)]) == "edge"
    assert highest_tier([row(1, device=1)]) == "device"
    assert highest_tier([]) == "device"


def test_the_closing_figure_is_the_last_of_the_highest_tier() -> None:
    got = summary([row(1, cloud=9, edge=1), row(2, edge=2), row(3, edge=3, cloud=5), row(4)])
    assert (got["tier"], got["t"], got["mean_global"]) == ("cloud", 3, pytest.approx(0.5))


def test_the_cycle_mean_is_of_the_edges_over_the_last_cycle() -> None:
    rows = [row(t, edge=t, **({"cloud": 9} if t % 4 == 0 else {})) for t in range(1, 9)]
    got = summary(rows, cycle=4)
    assert got["mean_global"] == pytest.approx(0.9)
    assert got["mean_global_cycle"] == pytest.approx((5 + 6 + 7 + 8) / 40)
    assert summary([row(1, device=3), row(2, device=5)], 2)["mean_global_cycle"] == pytest.approx(
        0.4
    )
    assert summary([RoundReport(1)])["mean_global_cycle"] is None


def test_a_task_that_nobody_evaluated_counts_as_chance_and_is_reported() -> None:
    got = summary([row(1, edge=8)])
    assert got["per_task"] == {"a": pytest.approx(0.8), "box": 0.0}
    assert got["uncovered"] == pytest.approx(4 / 14)
    assert got["measures"] == {}
    nothing = summary([RoundReport(1)])
    assert nothing["mean_global"] == pytest.approx(0.1)
    assert nothing["uncovered"] == 1.0
    assert summary([])["mean_global"] == pytest.approx(0.1)


def test_finer_measures_have_their_chance_and_personal_scores_their_split() -> None:
    report = row(1, edge=8)
    report.add_score("edge", "iid", "box", Score(1, 4, 1.4))
    report.add_score("edge", "skewed", "a", Score(10, 10, 10.0))
    got = summary([report])
    assert got["measures"] == {
        "box": {"name": "mean IoU", "value": pytest.approx(0.35), "chance": 0.0}
    }
    assert got["hit"] == {"a": "accuracy", "box": "IoU > 0.5"}
    assert got["chance"] == {"a": 0.1, "box": 0.0}
    report.add_score("edge", "guess", "box", Score(1, 4, 0.8))
    again = summary([report])
    assert again["chance"] == {"a": 0.1, "box": 0.25}, "measured where it is not exact"
    assert again["measures"]["box"]["chance"] == pytest.approx(0.2)
    assert {k: v for k, v in again.items() if k not in ("chance", "measures")} == {
        k: v for k, v in got.items() if k not in ("chance", "measures")
    }
    assert got["mean_personal"] == pytest.approx(1.0)
    assert got["mean_global"] == pytest.approx(0.8)
    assert got["uncovered"] == 0.0


def test_bytes_and_losses_add_up() -> None:
    rows = [row(1, edge=1), row(2, edge=1)]
    for report in rows:
        report.traffic = {"uplink": [10, 1], "backhaul": [100 * report.t, 2]}
        report.kinds = {"head": 10, "adapter": 100 * report.t}
        report.latency_s, report.energy_j = 2.0 * report.t, 5.0
        report.dropped, report.void = {"3": "late", "4": "late"}, [0]
    got = summary(rows)
    assert got["bytes"] == {"uplink": 20, "downlink": 0, "d2d": 0, "backhaul": 300}
    assert {k: v for k, v in got["kind_bytes"].items() if v} == {"adapter": 300, "head": 20}
    assert sum(got["kind_bytes"].values()) == sum(got["bytes"].values())
    assert got["header_bytes"] == {"uplink": 2, "downlink": 0, "d2d": 0, "backhaul": 4}
    assert (got["latency_s"], got["energy_j"]) == (3.0, 5.0), "means over the edge rounds"
    assert (got["dropped"], got["void"]) == (4, 2)


def test_facts_come_from_the_profiles() -> None:
    profiles = [
        NodeProfile(0, ("sensor",), {"watch7": 5}, tests={"watch7": 3}),
        NodeProfile(1, (), {}, tests={"watch7": 4, "easyvqa-box": 6}),
    ]
    facts = task_facts(["watch7", "easyvqa-box", "easyvqa10"], iter(profiles))
    assert facts == {
        "watch7": TaskFacts(1 / 7, True, 7),
        "easyvqa-box": TaskFacts(0.0, False, 6, "IoU > 0.5", "mean IoU"),
        "easyvqa10": TaskFacts(0.1, True, 0),
    }
    assert profiles[1].idle
    assert not profiles[0].idle


def test_the_result_is_json_with_config_and_versions() -> None:
    config = RunConfig().with_values(seed=7)
    result = build(
        config, [row(1, edge=4), RoundReport(2)], FACTS,
        cycle=1, status="interrupted", reason="asked", notes={"idle_devices": [3]},
    )  # fmt: skip
    assert json.loads(json.dumps(result)) == result
    assert RunConfig.from_flwr(config.to_flwr()).seed == result["seed"] == 7
    assert (result["status"], result["reason"]) == ("interrupted", "asked")
    assert result["idle_devices"] == [3]
    rounds: Any = result["rounds"]
    assert rounds[0]["loss"] == 0.5
    assert rounds[0]["mean_global"] == {"edge": pytest.approx(0.4)}
    assert (rounds[1]["loss"], rounds[1]["mean_global"]) == (0.0, {})
    versions: Any = result["versions"]
    assert {"hffm-flower", "python", "flwr", "numpy"} <= versions.keys()


def test_a_run_that_ended_before_its_tasks_were_known_has_no_summary() -> None:
    assert build(RunConfig(), [], {}, cycle=1, status="failed")["summary"] == {}


def test_means_are_of_the_iid_split_only() -> None:
    report = row(1, edge=4)
    report.add_score("device", "skewed", "a", Score(1, 1, 1.0))
    assert means(report, FACTS) == {"edge": pytest.approx(0.4)}


def test_a_link_of_rate_0_leaves_valid_json() -> None:
    report = row(1, edge=4)
    report.latency_s = report.energy_j = math.inf
    result = build(RunConfig(), [report], FACTS, cycle=1, status="finished")
    assert '"latency_s": null' in json.dumps(result, allow_nan=False)
