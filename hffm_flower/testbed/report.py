"""What a run on the testbed came to, and the file that says so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from hffm_flower.runfiles import RunFiles
from hffm_flower.testbed.control import Carried
from hffm_flower.testbed.measure import Timed
from hffm_flower.testbed.scenario import Scenario

REPORT: Final = "testbed.json"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run under a scenario came to.

    Attributes:
        scenario: Its name.
        folder: Of the results.
        status: ``finished``, ``failed``, or ``shaped`` where the run itself was another one's.
        reason: Why it failed.
        rounds: Edge rounds that were finished.
        void: In how many of them an edge had too few answers.
        dropped: Answers that did not come or could not be used.
        accuracy: Mean over the tasks, at the end.
        seconds: From the beginning to the end of the last edge round [s].
        modelled_s: Of all edge rounds, by the radio model [s].
        messages: What was timed.
        carried: What the emulator did.
    """

    scenario: str
    folder: Path
    status: str
    reason: str = ""
    rounds: int = 0
    void: int = 0
    dropped: int = 0
    accuracy: float | None = None
    seconds: float = 0.0
    modelled_s: float = 0.0
    messages: tuple[Timed, ...] = ()
    carried: Carried | None = None

    @classmethod
    def of_run(
        cls, scenario: str, files: RunFiles, reason: str, messages: Sequence[Timed],
        carried: Carried | None,
    ) -> Outcome:  # fmt: skip
        """That of a run whose results are in a folder."""
        result, reports = files.result(), files.rounds()
        summary = result.get("summary")
        return cls(
            scenario, files.root, str(result["status"]), reason, len(reports),
            sum(len(r.void) for r in reports), sum(len(r.dropped) for r in reports),
            summary.get("mean_global") if isinstance(summary, Mapping) else None,
            reports[-1].seconds if reports else 0.0, sum(r.latency_s for r in reports),
            tuple(messages), carried,
        )  # fmt: skip

    def write(self, faults: Scenario, events: Sequence[Mapping[str, object]]) -> None:
        """Write ``testbed.json``: this, the faults, what happened when, and every message."""
        told = {
            **asdict(self), "folder": str(self.folder),
            "faults": [fault.model_dump(by_alias=True, exclude_none=True) for fault in faults],
            "events": list(events), "messages": [m.to_json() for m in self.messages],
            "carried": _carried(self.carried),
        }  # fmt: skip
        text = json.dumps(told, indent=1) + "\n"
        (self.folder / REPORT).write_text(text, encoding="utf-8")


def _carried(carried: Carried | None) -> dict[str, object]:
    if carried is None:
        return {}
    links = [{"src": a, "dst": b, **asdict(c)} for (a, b), c in carried.links.items()]
    return {"cpu_s": carried.cpu_s, "packets": carried.packets, "links": links}
