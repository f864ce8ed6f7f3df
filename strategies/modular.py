"""What edge and cloud strategies share: they own modules and aggregate them one by one.

A strategy owns its state: the current modules, their versions, the optimisers' moments.
The state is replaced in one step after a complete merge; whatever fails before leaves it
as it was.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from flwr.app import Message
from flwr.serverapp.strategy import Strategy

from hffm_flower.d2d import Parcel
from hffm_flower.errors import DivergedError, HffmError, ModuleError
from hffm_flower.lora import check_pairs, fit, is_lora
from hffm_flower.modules import ModularUpdate, ModuleKey, ModuleState, shapes
from hffm_flower.records import failure_of, update_of
from hffm_flower.schedule import Schedule
from strategies.rules import Aggregation, LoraPolicy
from strategies.server_optimizers import OptimizerPolicy

log = logging.getLogger(__name__)

METRICS = "metrics"
"""Metric record of a training reply: loss, examples, flops."""

_LEAST_MASS, _MOST_MASS, TOO_LARGE, ROUNDING = 1e-6, 1e12, 1e20, 1e-6
"""Bounds of a mass [examples] and of a value, within which no float32 sum overflows."""


@dataclass(frozen=True, slots=True)
class Member:
    """A child in the tree, as its parent knows it.

    Attributes:
        index: Index of the device or of the edge.
        keys: Modules that it holds.
        examples: Most mass that it can have behind a module [examples].
        tests: Task -> examples of its shard of the IID test set; None: not known.
        ranks: LoRA module -> highest rank that it can use.
        lent: Experts of others that it gets for each round, beside its own.
    """

    index: int
    keys: tuple[ModuleKey, ...]
    examples: float = _MOST_MASS
    tests: Mapping[str, int] | None = None
    ranks: Mapping[ModuleKey, int] = field(default_factory=dict)
    lent: int = 0


def highest_ranks(members: Iterable[Member]) -> dict[ModuleKey, int]:
    """LoRA module -> highest rank that any of the children can use."""
    highest: dict[ModuleKey, int] = {}
    for member in members:
        for key, rank in member.ranks.items():
            highest[key] = max(highest.get(key, 0), rank)
    return highest


@dataclass(frozen=True, slots=True)
class Answer:
    """A child's reply that can be used; its modules are taken already.

    Attributes:
        member: The child.
        message: The reply.
    """

    member: Member
    message: Message


Behind = dict[ModuleKey, dict[int, float]]
"""Module -> child -> its mass in the module's new mean [examples]."""


def count(behind: Behind, parcel: Parcel) -> None:
    """Enter the children that ``parcel`` brings, those with mass."""
    for key, who in parcel.behind.items():
        live = {index: mass for index, mass in who.items() if mass > 0}
        if live:
            behind.setdefault(key, {}).update(live)


@dataclass(frozen=True, slots=True)
class Gathered:
    """What came back from the children.

    Attributes:
        update: Mean of the usable replies' modules.
        answers: The usable replies, in order of the children's index.
        refused: Index of a child -> why its reply cannot be used.
        behind: Children whose mass is in ``update``.
        tails: LoRA module -> sum of the singular values that aggregation has discarded.
    """

    update: ModularUpdate
    answers: tuple[Answer, ...]
    refused: Mapping[int, str]
    behind: Mapping[ModuleKey, Mapping[int, float]]
    tails: Mapping[ModuleKey, float]


class ModularStrategy(Strategy):
    """Aggregates modules, each over the children that trained it.

    Args:
        members: Node id -> child, of every child that takes part in the run.
        schedule: Scope and period of every module.
        rule: Name in `RULES`: how the children's updates become one.
        lora: How LoRA factors become one.
        optimizer: Server optimisers' policy string (`server_optimizers`).
        quorum: Share of the asked children that must answer for a round to count.
        deadline_s: How long to wait for one round's answers [s].
    """

    def __init__(
        self,
        members: Mapping[int, Member],
        schedule: Schedule,
        *,
        rule: str,
        optimizer: str,
        quorum: float,
        deadline_s: float,
        lora: LoraPolicy | None = None,
    ) -> None:
        self.lora = lora or LoraPolicy()
        self.rule = partial(Aggregation, rule, self.lora)
        self.members = dict(sorted(members.items(), key=lambda item: item[1].index))
        self.schedule = schedule
        self.quorum = quorum
        self.deadline_s = deadline_s
        self.modules: dict[ModuleKey, ModuleState] = {}
        self.versions: dict[ModuleKey, int] = {}
        self.optimizer = OptimizerPolicy(optimizer)
        self._cut: dict[tuple[ModuleKey, int], tuple[ModuleState | None, ModuleState]] = {}

    @property
    def keys(self) -> tuple[ModuleKey, ...]:
        """Modules that any child holds, sorted."""
        return tuple(sorted({k for m in self.members.values() for k in m.keys}))

    def gather(
        self, replies: Iterable[Message], allowed: Collection[ModuleKey] | None = None
    ) -> Gathered:
        """Check and merge replies one by one, in order of the children's index.

        One reply's modules are unpacked at a time: memory is that of one model beside the
        packed messages, however many children there are.

        Args:
            replies: One per asked child.
            allowed: Modules that children may send back; default: those they hold.
        """
        rule = self.rule()
        behind: Behind = {}

        def take(member: Member, reply: Message) -> None:
            update = update_of(reply.content)
            self._check(update, member, member.keys if allowed is None else allowed)
            self.inspect(member, reply, update)
            rule.add(update)
            count(behind, Parcel.of(update, member.index))

        answers, refused = self.read(replies, take)
        merged = rule.result()
        return Gathered(merged, answers, refused, behind, rule.tails)

    def read(
        self, replies: Iterable[Message], take: Callable[[Member, Message], None]
    ) -> tuple[tuple[Answer, ...], dict[int, str]]:
        """Hand every child's reply to ``take``, in order of the children's index.

        Returns:
            The replies that could be used, and why the others could not, by child's index.
        """
        answers: list[Answer] = []
        refused: dict[int, str] = {}
        for reply in sorted(replies, key=lambda r: self.members[r.metadata.src_node_id].index):
            member = self.members[reply.metadata.src_node_id]
            try:
                if reply.has_error():
                    raise ModuleError(failure_of(reply))
                take(member, reply)
            except HffmError as error:
                refused[member.index] = " ".join(str(error).split())[:300]
                log.warning("child %d dropped: %s", member.index, refused[member.index])
            else:
                answers.append(Answer(member, reply))
        return tuple(answers), refused

    def inspect(self, member: Member, reply: Message, update: ModularUpdate) -> None:
        """Refuse a reply for a reason of this tier, by raising an `HffmError`."""

    def held_by(self, member: Member, keys: Iterable[ModuleKey]) -> dict[ModuleKey, ModuleState]:
        """The modules ``keys`` as ``member`` can use them: LoRA at no higher rank than its own."""
        return {key: self.fitted(key, member.ranks.get(key, 0)) for key in keys}

    def fitted(self, key: ModuleKey, rank: int) -> ModuleState:
        """Module ``key``; LoRA at no higher rank than ``rank``, if that is not 0."""
        state = self.modules[key]
        if not rank or not self.lora.mixed or not is_lora(state):
            return state
        known, fitted = self._cut.get((key, rank), (None, state))
        if known is not state:
            fitted = fit(state, rank, self.lora.scaling)
            self._cut[key, rank] = state, fitted
        return fitted

    def has_quorum(self, usable: int, asked: int) -> bool:
        """Whether enough of the asked children have answered."""
        return usable >= self.quorum * asked and (usable > 0 or asked == 0)

    def publish(self, update: ModularUpdate, t: int, *, final: Collection[ModuleKey]) -> None:
        """Replace modules by the merged ``update`` of round ``t``, all or none.

        Args:
            update: Merged modules; those with no mass are absent and stay as they are.
            t: Edge round, becomes the modules' version.
            final: Modules that this tier decides; the server optimiser acts on these.
        """
        fresh = {
            key: self.optimizer.step(key, self.modules[key], state) if key in final else state
            for key, state in update.state.items()
        }
        for key in fresh.keys() & set(final):
            if not all(np.isfinite(a).all() for a in fresh[key].values()):
                raise DivergedError(
                    f"the server optimizer of {key} diverged in round {t}; "
                    "lower its rate in server.optimizer"
                )
        self.modules = {**self.modules, **fresh}
        self.versions = {**self.versions, **dict.fromkeys(fresh, t)}

    def _check(self, update: ModularUpdate, member: Member, allowed: Collection[ModuleKey]) -> None:
        for key, state in update.state.items():
            if key not in allowed:
                raise ModuleError(f"sent {key}, which it was not asked for")
            self.check_mass(key, update.mass[key], member)
            self.check_tensors(key, state)
            self.check_rank(key, state, member)

    def check_mass(self, key: ModuleKey, mass: float, member: Member) -> None:
        """Refuse a mass that ``member`` cannot have behind a module.

        Raises:
            ModuleError: It cannot.
        """
        if mass and not _LEAST_MASS <= mass <= member.examples * (1 + ROUNDING):
            raise ModuleError(f"mass of {key} is {mass:g}, but it has {member.examples:g} examples")

    def check_rank(self, key: ModuleKey, state: ModuleState, member: Member) -> None:
        """Refuse LoRA of a higher rank than ``member`` has; of an edge's merge, any is possible.

        Raises:
            ModuleError: It is higher.
        """

    def check_tensors(self, key: ModuleKey, state: ModuleState) -> None:
        """Refuse tensors that do not fit the module as it is here.

        Raises:
            ModuleError: The module is unknown here, or names, shapes, dtypes or values do
                not fit.
        """
        if key not in self.modules:
            raise ModuleError(f"sent {key}, which it was not asked for")
        for name, array in state.items():
            if array.dtype != np.float32:
                raise ModuleError(f"{key}/{name} is {array.dtype}, not float32")
        if shapes({key: state}) != shapes({key: self.modules[key]}):
            raise ModuleError(f"tensors of {key} have other names or shapes")
        if self.lora.mixed and is_lora(state):
            check_pairs(key, state)
        most = math.sqrt(TOO_LARGE) if is_lora(state) else TOO_LARGE  # factors are multiplied
        for name, array in state.items():
            if not (np.abs(array) < most).all():
                raise ModuleError(f"{key}/{name} is not finite, or so large that sums are not")

    def summary(self) -> None:
        """Log what this strategy aggregates."""
        log.info(
            "%s: %d children, %d modules", type(self).__name__, len(self.members), len(self.modules)
        )
