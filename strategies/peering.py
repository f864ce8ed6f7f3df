"""An edge whose devices exchange updates among themselves before they answer.

The edge plans the exchange of a round and hands the plan to its devices; a neighbour's
parcel may bring many devices' updates. What the parcels do not bring is asked for directly,
so that the update of every live device counts exactly once.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from hffm_flower.d2d import EDGE, Parcel, Plan, plan_to_json, settle
from hffm_flower.errors import ModuleError
from hffm_flower.modules import ModularState, ModuleKey, ModuleState
from hffm_flower.payload import PLAN, TRAINED, Admission, is_lacking, parcels_of, plan_record
from hffm_flower.records import CONFIG, MODULES, modules_record, update_of
from hffm_flower.records import masses as masses_of
from hffm_flower.report import RoundReport
from strategies.edge import EdgeStrategy
from strategies.grids import TRAIN, UPLOAD, instruction
from strategies.issuer import Issuer
from strategies.modular import Behind, Gathered, Member, count, highest_ranks
from strategies.planner import PeerPlanner

log = logging.getLogger(__name__)

Masses = Mapping[ModuleKey, float]


@dataclass(slots=True)
class _Heard:
    """What the participants of one exchange have answered.

    Attributes:
        t: Edge round.
        plan: What they were told to do.
        holds: Participant -> shared modules that it trains.
        sent: Those modules, as the edge sends them.
        uploads: Uploader -> its parcels.
        own: Device that answered -> what it says that it trained.
        untrained: Those of them that peers brought no modules.
    """

    t: int
    plan: Plan
    holds: Mapping[int, tuple[ModuleKey, ...]]
    sent: ModularState
    uploads: dict[int, tuple[Parcel, ...]] = field(default_factory=dict)
    own: dict[int, Masses] = field(default_factory=dict)
    untrained: set[int] = field(default_factory=set)


class PeerEdgeStrategy(EdgeStrategy):
    """An `EdgeStrategy` whose devices exchange updates by a plan.

    Args:
        args: As in `EdgeStrategy`.
        planner: Plans the exchanges.
        tickets: In a deployment: admits the devices to each other. Without it the grid plays the
            plans (`strategies.peer_grid`).
        online: In a deployment: tells the nodes that are there. No peer waits for another one.
        kwargs: As in `EdgeStrategy`.
    """

    def __init__(
        self,
        *args: Any,
        planner: PeerPlanner,
        tickets: Issuer | None = None,
        online: Callable[[], Iterable[int]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.planner = planner
        self.tickets = tickets
        self._online = online

    def collect(self, report: RoundReport) -> Generator[list[Message], Iterable[Message], Gathered]:
        """Have the devices train and exchange; ask those directly whom no parcel brought.

        Devices that peers cannot reach, and those to which peers brought no modules, train as
        with a plain `EdgeStrategy`.
        """
        drawn = self.drawn(report.t)
        nodes = self._reachable(drawn)
        if not nodes:
            return (yield from super().collect(report))
        holds = {m.index: self.shared(m, report.t) for m in (self.members[n] for n in nodes)}
        sent = self._travelling(nodes, holds)
        sizes = {k: sum(a.nbytes for a in state.values()) for k, state in sent.items()}
        heard = _Heard(report.t, self.planner.plan(report.t, holds, sizes), holds, sent)
        alone = self._messages(TRAIN, [n for n in drawn if n not in nodes], report)
        replies = list((yield self._instructions(nodes, heard) + alone))
        direct = [r for r in replies if r.metadata.src_node_id not in nodes]
        answers, refused = self.read(
            (r for r in replies if r.metadata.src_node_id in nodes), partial(self._take, heard)
        )
        settled = settle(heard.plan, self._believed(heard), heard.own)
        rule, behind = self.rule(), Behind()
        for parcel in settled.accepted:
            rule.add(parcel.update)
            count(behind, parcel)
        if settled.missing or heard.untrained:
            log.info(
                "edge %d round %d: asks devices %s for what no parcel brought; trains %s again",
                self.index, report.t, sorted(settled.missing), sorted(heard.untrained),
            )  # fmt: skip
            again = [n for n in nodes if self.members[n].index in heard.untrained]
            asks = self._asks(settled.missing, report.t)
            direct += yield asks + self._messages(TRAIN, again, report)

        def take_direct(member: Member, reply: Message) -> None:
            update = update_of(reply.content)
            allowed = settled.missing.get(member.index, self.shared(member, report.t))
            self._check(update, member, allowed)
            rule.add(update)
            count(behind, Parcel.of(update, member.index))

        others, lost = self.read(direct, take_direct)
        used = [a for a in answers if a.member.index not in lost.keys() | heard.untrained]
        used += [a for a in others if a.member.index not in settled.missing]
        ordered = tuple(sorted(used, key=lambda a: a.member.index))
        merged = rule.result()
        return Gathered(merged, ordered, refused | lost, behind, rule.tails)

    def _reachable(self, nodes: list[int]) -> list[int]:
        """Those of some nodes that can take part in an exchange."""
        if self._online is not None:
            online = set(self._online())
            nodes = [n for n in nodes if n in online]
        if self.tickets is not None:
            nodes = [n for n in nodes if self.members[n].index in self.tickets.addresses]
        return nodes

    def _travelling(
        self, nodes: Collection[int], holds: Mapping[int, Collection[ModuleKey]]
    ) -> dict[ModuleKey, ModuleState]:
        """Modules that pass from device to device: LoRA at the highest rank of who takes part."""
        highest = highest_ranks(self.members[node] for node in nodes)
        keys = sorted({k for keys in holds.values() for k in keys})
        return {key: self.fitted(key, highest.get(key, 0)) for key in keys}

    def _take(self, heard: _Heard, member: Member, reply: Message) -> None:
        """Read the reply of a device that took part in the exchange."""
        index = member.index
        if TRAINED not in reply.content.metric_records:
            # The device's own words, which no neighbour could use: say why.
            self._check(update_of(reply.content), member, heard.holds[index])
            raise ModuleError("does not say what it trained")
        heard.own[index] = self._trained_of(reply, member, heard.holds[index])
        if self.tickets is not None:
            self.tickets.enter(reply.content, heard.t, index, heard.holds)
            if is_lacking(reply.content):
                heard.own[index] = {}
                heard.untrained.add(index)
        try:
            parcels = parcels_of(reply.content)
            for parcel in parcels:
                self._check_parcel(parcel, heard.plan, heard.holds)
        except ModuleError as error:  # may be another's fault: all are asked directly
            log.warning("edge %d: parcels of device %d: %s", self.index, index, error)
        else:
            if parcels:
                heard.uploads[index] = parcels

    def _trained_of(
        self, reply: Message, member: Member, held: Collection[ModuleKey]
    ) -> dict[ModuleKey, float]:
        trained = masses_of(reply.content, TRAINED)
        for key, mass in trained.items():
            if key not in held:
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

    def _believed(self, heard: _Heard) -> dict[int, tuple[Parcel, ...]]:
        """The uploads whose parcels count every device as it says that it is to be counted.

        Gossiped ones hold shares of everybody's mass; their mass is not taken from them.
        """
        return {
            uploader: parcels
            for uploader, parcels in heard.uploads.items()
            if all(self._is_true(parcel, uploader, heard) for parcel in parcels)
        }

    def _is_true(self, parcel: Parcel, uploader: int, heard: _Heard) -> bool:
        for key in parcel.behind.keys() - heard.plan.groups.keys():
            for device, mass in parcel.behind[key].items():
                said = heard.own.get(device, {key: mass}).get(key, 0.0)
                if not math.isclose(said, mass, rel_tol=1e-6):
                    log.warning(
                        "edge %d: device %d counts %g of %s for device %d, which says %g",
                        self.index, uploader, mass, key, device, said,
                    )  # fmt: skip
                    return False
        return True

    def _instructions(self, nodes: Collection[int], heard: _Heard) -> list[Message]:
        """Each device's part: the modules that it gets from the edge itself, and the plan."""
        plan, holds, t = heard.plan, heard.holds, heard.t
        text = plan_to_json(plan)
        admissions: Mapping[int, Admission] = {}
        if self.tickets is not None:
            examples = {m.index: m.examples for n, m in self.members.items() if n in nodes}
            admissions = self.tickets.admissions(t, examples, heard.sent, self.deadline_s)
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
                        {k: heard.sent[k] for k in sorted(direct.get(index, ()))}
                    ),
                    CONFIG: ConfigRecord({"t": t, "edge": self.index}),
                    PLAN: plan_record(text, holds[index], admissions.get(index)),
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
