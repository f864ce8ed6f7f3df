"""The links of a running tree, kept as the radio model and a scenario say."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from hffm_flower.ledger import EDGE
from hffm_flower.session.hosts import Begun
from hffm_flower.testbed.control import Control
from hffm_flower.testbed.link import Quality
from hffm_flower.testbed.scenario import Ends, Scenario, links_at
from hffm_flower.testbed.shaping import cell_links
from hffm_flower.wireless.network import Network

FIRST: Final = 1
"""The edge round whose channel there is before anything is known."""


class Air:
    """Sets the emulator's links anew where a cluster is in another edge round or a fault begins.

    Args:
        network: The radio model.
        scenario: Faults.
        control: The emulator's.
    """

    def __init__(self, network: Network, scenario: Scenario, control: Control) -> None:
        self.events: list[dict[str, object]] = []
        """What happened, with seconds since the beginning."""
        self._network, self._scenario, self._control = network, scenario, control
        self._began_s = time.monotonic()
        self._rounds: dict[int, int] = {}
        self._model: dict[Ends, Quality] = {}
        self._set: dict[Ends, Quality] = {}
        self._from_s: dict[int, float] = {}
        self._active: frozenset[int] = frozenset()
        self.follow({})

    def follow(self, begun: Begun) -> None:
        """Let the links be those of these edge rounds; call it about twice a second.

        Until the run is at work all are in round 0: the channel is that of `FIRST`, without faults.
        """
        self._redraw(begun)
        self._hit(max(begun.values(), default=0))
        wanted = dict(self._model)
        for number in sorted(self._active):
            fault = self._scenario[number]
            for ends in links_at(fault.where, self._network.topology):
                wanted[ends] = fault.applied(wanted[ends])
        changed = {ends: q for ends, q in wanted.items() if self._set.get(ends) != q}
        if changed:
            self._control.change(changed)
            self._set |= changed

    @property
    def links(self) -> Mapping[Ends, Quality]:
        """What they are now."""
        return self._set

    def _redraw(self, begun: Begun) -> None:
        """The channel of a cluster's edge round; in a tree without edges all are in the same."""
        for edge in range(self._network.topology.edges):
            t = max(FIRST, begun.get(f"{EDGE}/{edge}", max(begun.values(), default=FIRST)))
            if self._rounds.get(edge) != t:
                self._rounds[edge] = t
                self._model |= cell_links(self._network, edge, t)
                self._tell(event="round", edge=edge, t=t)

    def _hit(self, t: int) -> None:
        """Begin and end faults."""
        now_s = time.monotonic()
        active = set()
        for number, fault in enumerate(self._scenario):
            if t >= fault.round:
                from_s = self._from_s.setdefault(number, now_s + fault.after_s)
                if from_s <= now_s and not (fault.seconds and now_s >= from_s + fault.seconds):
                    active.add(number)
        for number in sorted(active ^ self._active):
            event = "fault" if number in active else "mended"
            self._tell(event=event, fault=self._scenario[number].told())
        self._active = frozenset(active)

    def _tell(self, **facts: object) -> None:
        self.events.append({"s": round(time.monotonic() - self._began_s, 2), **facts})
