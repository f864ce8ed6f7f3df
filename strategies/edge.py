"""The edge server: runs the edge rounds of its cluster between two cloud exchanges.

The edge's share of a cloud message is one generator, `EdgeStrategy.cluster_round`: it
yields messages for devices, receives their replies and returns the edge's reply. In
simulation a `NestedGrid` advances all edges' generators in lock step; a deployed edge
advances its own.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from hffm_flower.errors import ModuleError
from hffm_flower.lora import rank_of
from hffm_flower.modules import ModularUpdate, ModuleKey, ModuleKind, ModuleState
from hffm_flower.records import (
    CONFIG,
    MASS,
    MODULES,
    REPORT,
    TAILS,
    mass_record,
    metrics,
    modules_of,
    modules_record,
    number,
)
from hffm_flower.report import RoundReport
from hffm_flower.schedule import Schedule, Scope
from hffm_flower.seeding import generator
from strategies.figures import plausible, scalar, score_of
from strategies.grids import EVALUATE, EVALUATE_CLUSTER, TRAIN, ClusterRound, instruction
from strategies.modular import Gathered, Member, ModularStrategy
from strategies.rules import LoraPolicy
from strategies.selection import participants

log = logging.getLogger(__name__)

MOST_FLOPS = 1e18
"""Of one device in one round [flop]."""


class EdgeStrategy(ModularStrategy):
    """Aggregates its cluster's devices every edge round.

    Source: client-edge-cloud averaging, Liu et al. 2020, arXiv 1905.06641, Alg. 1; per
    module, arXiv 2509.03695.

    Args:
        index: Index of this edge.
        members: Node id -> device, of the cluster's devices that have something to train.
        schedule: Scope and period of every module.
        seed: The run's seed, for participation.
        fraction: Share of the devices that take part in each edge round.
        rule: As in `ModularStrategy`.
        optimizer: As in `ModularStrategy`; acts on modules of edge scope.
        quorum: As in `ModularStrategy`; a round below it publishes nothing.
        deadline_s: As in `ModularStrategy`.
        report_every: Edge rounds between reports where nothing reaches the cloud.
        on_round: Told of every edge round as it ends, before the cloud hears of it.
        lora: As in `ModularStrategy`.
    """

    def __init__(
        self,
        index: int,
        members: Mapping[int, Member],
        schedule: Schedule,
        *,
        seed: int,
        fraction: float,
        rule: str,
        optimizer: str,
        quorum: float,
        deadline_s: float,
        report_every: int,
        on_round: Callable[[RoundReport], None] = lambda report: None,
        lora: LoraPolicy | None = None,
    ) -> None:
        super().__init__(
            members, schedule, rule=rule, optimizer=optimizer, quorum=quorum,
            deadline_s=deadline_s, lora=lora,
        )  # fmt: skip
        self.index = index
        self.seed = seed
        self.fraction = fraction
        self.evaluated = frozenset(schedule.edge_evaluations(report_every))
        self.own = frozenset(schedule.scoped(Scope.EDGE))
        self.personal = frozenset(schedule.scoped(Scope.DEVICE))
        self.lower_tier = "device" if self.personal else "edge"
        self.report = RoundReport(0)
        self.t = 0
        self.reports: list[RoundReport] = []
        self._on_round = on_round
        self.final_modules: dict[ModuleKey, ModuleState] = {}
        self.trained: dict[ModuleKey, dict[int, float]] = defaultdict(dict)
        self.tails: dict[ModuleKey, float] = {}

    def cluster_round(self, kind: str, content: RecordDict) -> ClusterRound:
        """Play the edge's share of a cloud message.

        Args:
            kind: ``train.cluster`` (edge rounds ``first`` to ``last``) or
                ``evaluate.cluster`` (the cloud's model, after round ``last``).
            content: First and last round, and modules that the edge has not.
        """
        first, last = number(content, CONFIG, "first"), number(content, CONFIG, "last")
        if kind == EVALUATE_CLUSTER:
            self.adopt(modules_of(content), last)
            report = RoundReport(last)
            self.score((yield self.ask_evaluate(report)), report, "cloud")
            return _reply(ModularUpdate({}, {}), [report], {})
        if self.t < first:
            self.adopt(modules_of(content), first - 1)
            self.reports = []
        for t in range(max(first, self.t + 1), last + 1):
            report = RoundReport(t)
            self.learn((yield from self.collect(report)), report)
            if t in self.evaluated:
                self.score((yield self.ask_evaluate(report)), report, self.lower_tier)
            self.t = t
            self.reports.append(report)
            self._on_round(report)
        if last == self.schedule.rounds:
            self.final_modules = dict(self.modules)
        return _reply(self.contribution(self.schedule.due(last)), self.reports, self.tails)

    def adopt(self, modules: Mapping[ModuleKey, ModuleState], t: int) -> None:
        """Take modules from the cloud; what was trained on them before is accounted for."""
        self.modules = {**self.modules, **modules}
        self.versions = {**self.versions, **dict.fromkeys(modules, t)}
        for key in modules:
            self.trained.pop(key, None)
            self.tails.pop(key, None)

    def contribution(self, due: Collection[ModuleKey]) -> ModularUpdate:
        """The edge's update of the modules that are due.

        A module's mass counts the distinct devices that have trained it since its last
        cloud aggregation, each with its latest number of examples.
        """
        mass = {k: sum(self.trained[k].values()) for k in due if self.trained.get(k)}
        return ModularUpdate({k: self.modules[k] for k in mass}, mass)

    def check_rank(self, key: ModuleKey, state: ModuleState, member: Member) -> None:
        """As in `ModularStrategy`."""
        most = member.ranks.get(key)
        if most is not None and rank_of(state) > most:
            raise ModuleError(f"{key} has rank {rank_of(state)}, but the device's is {most}")

    def drawn(self, t: int) -> list[int]:
        """Node ids of the devices that take part in edge round ``t``, in order of index."""
        chosen = participants(
            (m.index for m in self.members.values()), fraction=self.fraction, seed=self.seed, t=t
        )
        return [n for n, m in self.members.items() if m.index in chosen]

    def ask_train(self, report: RoundReport) -> list[Message]:
        """Messages of an edge round, to the devices drawn for it."""
        return self._messages(TRAIN, self.drawn(report.t), report)

    def collect(self, report: RoundReport) -> Generator[list[Message], Iterable[Message], Gathered]:
        """Have the devices train, and gather what they send."""
        return self.gather((yield self.ask_train(report)), self.modules.keys() - self.personal)

    def learn(self, got: Gathered, report: RoundReport) -> None:
        """Publish what was gathered, or nothing below the quorum."""
        report.dropped |= {str(k): why for k, why in got.refused.items()}
        used = {a.member.index for a in got.answers} | {k for w in got.behind.values() for k in w}
        asked = len(used | got.refused.keys())
        if not self.has_quorum(len(used), asked):
            report.void.append(self.index)
            log.warning(
                "edge %d round %d: %d of %d devices answered, below the quorum of %g; "
                "the modules stay as they were",
                self.index, report.t, len(used), asked, self.quorum,
            )  # fmt: skip
            return
        self.publish(got.update, report.t, final=self.own)
        self.tails |= got.tails
        report.devices += sorted(used)
        for answer in got.answers:
            figures = metrics(answer.message.content, "metrics")
            report.loss_sum += scalar(figures.get("loss"))
            report.trained += int(scalar(figures.get("examples")))
            flops = scalar(figures.get("flops"))
            if not 0.0 <= flops <= MOST_FLOPS:
                log.warning(
                    "device %d says it took %g flop; not priced", answer.member.index, flops
                )
                flops = 0.0
            report.work[str(answer.member.index)] = flops
        for key, who in got.behind.items():
            self.trained[key].update(who)
        log.info("edge %d round %d: %d devices", self.index, report.t, len(used))

    def ask_evaluate(self, report: RoundReport) -> list[Message]:
        """Messages that have every device evaluate the edge's modules on its test shards."""
        return self._messages(EVALUATE, list(self.members), report)

    def score(self, replies: Iterable[Message], report: RoundReport, tier: str) -> None:
        """Add up the devices' counts as those of the model of ``tier``."""
        got = self.gather(replies)
        report.dropped |= {str(k): f"evaluate: {why}" for k, why in got.refused.items()}
        evaluated = set(report.evaluated.get(tier, []))
        for answer in got.answers:
            for name, values in metrics(answer.message.content, "scores").items():
                split, _, task = name.partition("/")
                score = score_of(values)
                if score is None or not plausible(score, answer.member, split, task):
                    log.warning("device %d: %s = %s is no score", answer.member.index, name, values)
                    continue
                report.add_score(tier, split, task, score)
                evaluated.add(answer.member.index)
        report.evaluated[tier] = sorted(evaluated)

    def _messages(self, kind: str, nodes: Iterable[int], report: RoundReport) -> list[Message]:
        """One message per node with exactly the modules that its profile names."""
        out = []
        for node in nodes:
            member = self.members[node]
            keys = self.shared(member, report.t if kind == TRAIN else 0)
            record = modules_record(self.held_by(member, keys))
            config = ConfigRecord({"t": report.t})
            content = RecordDict({MODULES: record, CONFIG: config})
            out.append(
                instruction(content, node_id=node, kind=kind, t=report.t, ttl_s=self.deadline_s)
            )
        return out

    def shared(self, member: Member, t: int) -> tuple[ModuleKey, ...]:
        """Modules that a device has from here: its own, and in edge round ``t`` >= 1 lent ones.

        Lent are experts that other devices of the cluster hold, drawn anew for every round, to
        devices that have memory for them.
        """
        own = [k for k in member.keys if k in self.modules and k not in self.personal]
        if not member.lent or not t:
            return tuple(own)
        experts = {k for m in self.members.values() for k in m.keys if k.kind is ModuleKind.EXPERT}
        others = sorted((experts & self.modules.keys()) - set(member.keys) - self.personal)
        order = generator(self.seed, "lend", member.index, t).permutation(len(others))
        return tuple(sorted([*own, *(others[i] for i in order[: member.lent])]))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """An edge round under Flower's own loop: a cluster without a cloud."""
        if not self.modules:
            self.adopt(modules_of(RecordDict({MODULES: arrays})), server_round - 1)
        self.report = RoundReport(server_round)
        return self.ask_train(self.report)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Publish the round's modules."""
        self.learn(self.gather(replies, self.modules.keys() - self.personal), self.report)
        loss = self.report.loss_sum / max(1, self.report.trained)
        return modules_record(self.modules), MetricRecord({"loss": loss})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the cluster evaluate what the round published."""
        return self.ask_evaluate(self.report)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Accuracy per split and task."""
        self.score(replies, self.report, self.lower_tier)
        return MetricRecord(
            {
                f"{split}/{task}": score.correct / max(1, score.total)
                for split, tasks in self.report.scores.get(self.lower_tier, {}).items()
                for task, score in tasks.items()
            }
        )


def _reply(
    update: ModularUpdate, reports: list[RoundReport], tails: Mapping[ModuleKey, float]
) -> RecordDict:
    sent = {key: tail for key, tail in tails.items() if key in update.state}
    return RecordDict(
        {
            MODULES: modules_record(update.state),
            MASS: mass_record(update.mass),
            TAILS: mass_record(sent),
            REPORT: ConfigRecord({"rounds": [r.to_json() for r in reports]}),
        }
    )
