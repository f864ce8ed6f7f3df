"""The cloud: exchanges modules with edges when they are due, and keeps the record.

Flower's own loop drives it: one of Flower's server rounds is one cloud exchange, that is
the edge rounds since the last one. `CloudStrategy` cannot tell whether its grid's nodes
are edges played in process or real ones.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from hffm_flower.errors import ProtocolError, QuorumError
from hffm_flower.ledger import Ledger, from_line
from hffm_flower.modules import ModularState, ModularUpdate, ModuleKey
from hffm_flower.records import (
    CONFIG,
    MODULES,
    REPORT,
    TAILS,
    TRANSFERS,
    masses,
    modules_record,
    words,
)
from hffm_flower.report import RoundReport
from hffm_flower.schedule import Schedule, Scope
from strategies.grids import EVALUATE_CLUSTER, TRAIN_CLUSTER, instruction
from strategies.modular import Gathered, Member, ModularStrategy
from strategies.rules import LoraPolicy

log = logging.getLogger(__name__)

OnRound = Callable[[RoundReport, ModularState], None]
"""Told of every finished edge round, with the modules that the cloud has aggregated."""


class CloudStrategy(ModularStrategy):
    """Aggregates the edges' modules, each at its own period.

    Source: HierFAVG, Liu et al. 2020, arXiv 1905.06641, Alg. 1; per module with its own
    scope and period, arXiv 2509.03695.

    Args:
        members: Node id -> edge.
        schedule: Scope and period of every module.
        initial: The modules to begin with.
        rule: As in `ModularStrategy`.
        optimizer: As in `ModularStrategy`; acts on modules of cloud scope.
        quorum: As in `ModularStrategy`.
        deadline_s: As in `ModularStrategy`, for one edge round.
        report_every: Edge rounds between reports where nothing reaches the cloud.
        ledger: Where the transfers that edges report are entered.
        on_round: Called once per edge round, in order.
        lora: As in `ModularStrategy`.
    """

    def __init__(
        self,
        members: Mapping[int, Member],
        schedule: Schedule,
        initial: ModularState,
        *,
        rule: str,
        optimizer: str,
        quorum: float,
        deadline_s: float,
        report_every: int,
        on_round: OnRound,
        ledger: Ledger | None = None,
        lora: LoraPolicy | None = None,
    ) -> None:
        super().__init__(
            members, schedule, rule=rule, optimizer=optimizer, quorum=quorum,
            deadline_s=deadline_s, lora=lora,
        )  # fmt: skip
        self.modules = dict(initial)
        self.versions = dict.fromkeys(initial, 0)
        self.exchanges = schedule.exchanges(report_every)
        self._cloud_keys = frozenset(schedule.scoped(Scope.CLOUD))
        self._on_round = on_round
        self._ledger = ledger or Ledger()
        self._held: dict[int, dict[ModuleKey, int]] = {n: {} for n in members}
        self._sent: dict[int, dict[ModuleKey, int]] = {}
        self._reports: dict[int, RoundReport] = {}
        self._tails: dict[ModuleKey, list[tuple[float, float]]] = {}

    def span(self, server_round: int) -> tuple[int, int]:
        """First and last edge round of an exchange."""
        last = self.exchanges[server_round - 1]
        first = 1 if server_round == 1 else self.exchanges[server_round - 2] + 1
        return first, last

    def round_timeout_s(self) -> float:
        """Longest time that one exchange may take [s].

        Every edge round trains, may ask devices again, and may evaluate.
        """
        longest = max(
            last - first + 1 for first, last in map(self.span, range(1, len(self.exchanges) + 1))
        )
        return 3.0 * self.deadline_s * longest

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every edge for its edge rounds up to the next exchange."""
        first, last = self.span(server_round)
        self._reports = {t: RoundReport(t) for t in range(first, last + 1)}
        return self._messages(TRAIN_CLUSTER, first, last)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge the modules that are due.

        Raises:
            QuorumError: No device of any edge could be used in the whole exchange.
        """
        _, last = self.span(server_round)
        self._tails = {}
        got = self._take(replies)
        if not any(report.devices for report in self._reports.values()):
            reasons = sorted({w for r in self._reports.values() for w in r.dropped.values()})
            raise QuorumError(
                f"no device's update could be used up to edge round {last}: "
                + ("; ".join(reasons[:3]) or "no device took part")
            )
        if self.has_quorum(len(got.answers), len(self.members)):
            self.publish(got.update, last, final=self._cloud_keys)
            self._reports[last].lora_bound = self._bounds(got)
        else:
            log.warning(
                "cloud round %d: %d of %d edges answered, below the quorum of %g; "
                "the modules stay as they were",
                last, len(got.answers), len(self.members), self.quorum,
            )  # fmt: skip
        loss = sum(r.loss_sum for r in self._reports.values())
        trained = sum(r.trained for r in self._reports.values())
        metrics = MetricRecord({"t": last, "loss": loss / max(1, trained)})
        return modules_record(self.modules), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the cloud's modules evaluated, if it has just aggregated any."""
        _, last = self.span(server_round)
        aggregated = last in self.versions.values()
        return self._messages(EVALUATE_CLUSTER, last, last) if aggregated else []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Add up the counts and close the books on these edge rounds."""
        self._take(replies)
        for report in self._reports.values():
            self._on_round(report, self.aggregated())
        return None

    def aggregated(self) -> ModularState:
        """The modules that the cloud has aggregated at least once."""
        return {k: self.modules[k] for k in self.modules if self.versions[k] > 0}

    def inspect(self, member: Member, reply: Message, update: ModularUpdate) -> None:
        """Refuse an edge's reply without readable reports; note what its LoRA has lost."""
        try:
            _reports_of(reply)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ProtocolError(f"its report cannot be read: {error}") from error
        for key, tail in masses(reply.content, TAILS).items():
            if key in update.mass and tail >= 0:
                self._tails.setdefault(key, []).append((update.mass[key], tail))

    def _bounds(self, got: Gathered) -> dict[str, float]:
        """Bound on the error of every LoRA module's new value, by truncation in all tiers.

        The cloud's tail plus the mean of the edges', each a sum of singular values: no more is
        missing in nuclear norm, and so in Frobenius norm, of the mean of all devices' products.
        """
        bounds = {}
        for key, tail in got.tails.items():
            total = got.update.mass[key]
            below = sum(mass / total * edge for mass, edge in self._tails.get(key, []))
            bounds[str(key)] = tail + below
        return bounds

    def _take(self, replies: Iterable[Message]) -> Gathered:
        """Gather; the edges' reports are added to the rounds', their edges are up to date."""
        got = self.gather(replies)
        for answer in got.answers:
            for report in _reports_of(answer.message):
                if report.t in self._reports:
                    self._reports[report.t].add(report)
            lines = words(answer.message.content, REPORT).get(TRANSFERS)
            for line in lines if isinstance(lines, list) else []:
                self._ledger.extend(from_line(str(line))[1])
            node = answer.message.metadata.src_node_id
            self._held[node] = self._sent[node]
        for index, why in got.refused.items():
            self._reports[max(self._reports)].dropped[f"edge {index}"] = why
        return got

    def _messages(self, kind: str, first: int, last: int) -> list[Message]:
        """One message per edge, with the modules that it does not have in this version."""
        self._sent = {}
        out = []
        for node, member in self.members.items():
            versions = {k: self.versions[k] for k in member.keys if k in self.versions}
            self._sent[node] = versions
            fresh = [k for k in versions if self._held[node].get(k) != versions[k]]
            modules = self.held_by(member, (k for k in fresh if k in self.modules))
            content = RecordDict(
                {
                    MODULES: modules_record(modules),
                    CONFIG: ConfigRecord({"first": first, "last": last}),
                }
            )
            out.append(
                instruction(content, node_id=node, kind=kind, t=last, ttl_s=self.round_timeout_s())
            )
        return out


def _reports_of(message: Message) -> list[RoundReport]:
    lines = words(message.content, REPORT).get("rounds")
    if not isinstance(lines, list):
        raise TypeError(f"rounds must be a list of lines, not {lines!r}")
    return [RoundReport.from_json(str(line)) for line in lines]


@contextlib.contextmanager
def quiet_flower() -> Iterator[None]:
    """Flower's loop logs every record whole; keep its warnings."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
