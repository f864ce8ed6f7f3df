"""An edge whose devices exchange updates among themselves before they answer.

The edge plans the exchange of a round and hands the plan to its devices; a neighbour's
parcel may bring many devices' updates. What the parcels do not bring is asked for directly,
so that the update of every live device counts exactly once.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Generator, Iterable, Mapping
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from hffm_flower.d2d import EDGE, Parcel, Plan, plan_to_json, settle
from hffm_flower.errors import ModuleError
from hffm_flower.modules import ModularUpdate, ModuleKey
from hffm_flower.payload import PLAN, TRAINED, parcels_of, plan_record
from hffm_flower.records import CONFIG, MODULES, modules_record, update_of
from hffm_flower.records import masses as masses_of
from hffm_flower.report import RoundReport
from strategies.edge import EdgeStrategy
from strategies.grids import TRAIN, UPLOAD, instruction
from strategies.modular import Behind, Gathered, Member, count
from strategies.planner import PeerPlanner

log = logging.getLogger(__name__)

Masses = Mapping[ModuleKey, float]


class PeerEdgeStrategy(EdgeStrategy):
    """An `EdgeStrategy` whose devices exchange updates by a plan.

    Args:
        args: As in `EdgeStrategy`.
        planner: Plans the exchanges.
        kwargs: As in `EdgeStrategy`.
    """

    def __init__(self, *args: Any, planner: PeerPlanner, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.planner = planner

    def collect(self, report: RoundReport) -> Generator[list[Message], Iterable[Message], Gathered]:
        """Have the devices train and exchange; ask those directly whom no parcel brought."""
        nodes = self.drawn(report.t)
        if not nodes:
            return self.gather((yield []))
        holds = {self.members[n].index: self._shared(self.members[n]) for n in nodes}
        sizes = {
            k: sum(a.nbytes for a in self.modules[k].values())
            for k in {k for keys in holds.values() for k in keys}
        }
        plan = self.planner.plan(report.t, holds, sizes)
        uploads: dict[int, tuple[Parcel, ...]] = {}
        own: dict[int, Masses] = {}

        def take(member: Member, reply: Message) -> None:
            if TRAINED not in reply.content.metric_records:
                # The device's own words, which no neighbour could use: say why.
                self._check(update_of(reply.content), member, self._shared(member))
                raise ModuleError("does not say what it trained")
            own[member.index] = self._trained_of(reply, member)
            try:
                parcels = parcels_of(reply.content)
                for parcel in parcels:
                    self._check_parcel(parcel, plan, holds)
            except ModuleError as error:  # may be another's fault: all are asked directly
                log.warning("edge %d: parcels of device %d: %s", self.index, member.index, error)
            else:
                if parcels:
                    uploads[member.index] = parcels

        replies = yield self._instructions(nodes, plan, holds, report.t)
        answers, refused = self.read(replies, take)
        uploads = {k: p for k, p in uploads.items() if self._believed(plan, k, p, own)}
        settled = settle(plan, uploads, own)
        rule, behind = self.rule(), Behind()
        for parcel in settled.accepted:
            rule.add(parcel.update)
            count(behind, parcel)
        if settled.missing:
            log.info(
                "edge %d round %d: no parcel brought devices %s; asking them",
                self.index, report.t, sorted(settled.missing),
            )  # fmt: skip

            def take_direct(member: Member, reply: Message) -> None:
                update = update_of(reply.content)
                self._check(update, member, settled.missing[member.index])
                rule.add(update)
                count(behind, Parcel.of(update, member.index))

            _, lost = self.read((yield self._asks(settled.missing, report.t)), take_direct)
            refused |= lost
            answers = tuple(a for a in answers if a.member.index not in lost)
        return Gathered(rule.result(), answers, refused, behind)

    def _shared(self, member: Member) -> tuple[ModuleKey, ...]:
        return tuple(k for k in member.keys if k in self.modules and k not in self.personal)

    def _trained_of(self, reply: Message, member: Member) -> dict[ModuleKey, float]:
        trained = masses_of(reply.content, TRAINED)
        for key, mass in trained.items():
            if key not in self._shared(member):
                raise ModuleError(f"says it trained {key}, which it does not hold")
            self.check_mass(key, mass, member)
        return trained

    def _check_parcel(
        self, parcel: Parcel, plan: Plan, holds: Mapping[int, Collection[ModuleKey]]
    ) -> None:
        """Refuse what cannot be; a gossiped parcel's masses are shares, however thin."""
        members = {m.index: m for m in self.members.values()}
        for key, who in parcel.behind.items():
            self.check_tensors(key, parcel.update.state[key])
            for device, mass in who.items():
                if key not in holds.get(device, ()):
                    raise ModuleError(f"a parcel counts device {device} for {key} by mistake")
                if key not in plan.groups:
                    self.check_mass(key, mass, members[device])

    def _believed(
        self, plan: Plan, uploader: int, parcels: Iterable[Parcel], own: Mapping[int, Masses]
    ) -> bool:
        """Whether relayed parcels count every device as it says that it is to be counted.

        Gossiped ones hold shares of everybody's mass; their mass is not taken from them.
        """
        for parcel in parcels:
            for key in parcel.behind.keys() - plan.groups.keys():
                for device, mass in parcel.behind[key].items():
                    said = own.get(device, {key: mass}).get(key, 0.0)
                    if not math.isclose(said, mass, rel_tol=1e-6):
                        log.warning(
                            "edge %d: device %d counts %g of %s for device %d, which says %g",
                            self.index, uploader, mass, key, device, said,
                        )  # fmt: skip
                        return False
        return True

    def _instructions(
        self, nodes: Iterable[int], plan: Plan, holds: Mapping[int, tuple[ModuleKey, ...]], t: int
    ) -> list[Message]:
        """Each device's part: the modules that it gets from the edge itself, and the plan."""
        text = plan_to_json(plan)
        direct: dict[int, set[ModuleKey]] = {}
        for hop in plan.down:
            if hop.src == EDGE:
                direct.setdefault(hop.dst, set()).update(hop.keys)
        messages = []
        for node in nodes:
            index = self.members[node].index
            content = RecordDict(
                {
                    MODULES: modules_record(
                        {k: self.modules[k] for k in sorted(direct.get(index, ()))}
                    ),
                    CONFIG: ConfigRecord({"t": t, "edge": self.index}),
                    PLAN: plan_record(text, holds[index]),
                }
            )
            messages.append(
                instruction(content, node_id=node, kind=TRAIN, t=t, ttl_s=self.deadline_s)
            )
        return messages

    def _asks(self, missing: Mapping[int, tuple[ModuleKey, ...]], t: int) -> list[Message]:
        """Ask devices for their own updates."""
        messages = []
        for node, member in self.members.items():
            if member.index in missing:
                keys = json.dumps([str(k) for k in missing[member.index]])
                content = RecordDict({CONFIG: ConfigRecord({"t": t, "keys": keys})})
                messages.append(
                    instruction(content, node_id=node, kind=UPLOAD, t=t, ttl_s=self.deadline_s)
                )
        return messages

