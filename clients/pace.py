"""How the time of a call is shared among its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DOOR: Final = 0.75
"""Share of a step's time after which a peer that has not turned up is given up."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Deadlines of the steps of one call, all counted from its start.

    Half of the time is there for peers that are still training when the first step begins;
    the steps share the other half. A step that is done early leaves its time to the later
    ones, so peers that began at different times need not be at the same step.

    Attributes:
        start: Clock time at which the call began [s].
        total_s: Time of the whole call [s].
        steps: How many steps there are, at least 1.
    """

    start: float
    total_s: float
    steps: int

    def limit(self, step: int) -> float:
        """Clock time at which ``step`` ends, whatever is missing."""
        return self._at(step + 1)

    def door(self, step: int) -> float:
        """Clock time after which nobody may turn up for ``step``; who has, may finish."""
        return self._at(step + DOOR)

    def _at(self, steps: float) -> float:
        return self.start + self.total_s * (1 + steps / self.steps) / 2
