"""Before round 1: who is there, what each one holds, and the same initial bits for all.

Every device answers ``query.profile``; one that differs in version, settings, definition of
a task or module layout is refused with the difference. Each module is then taken from its
lowest-index holder by ``query.init``; every other holder answers a digest, and a mismatch
ends the run.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from hffm_flower.errors import HffmError, Interrupted, ProtocolError, QuorumError
from hffm_flower.modules import ModuleKey, ModuleState, digest, shapes
from hffm_flower.profile import NodeProfile, profile_of, whole
from hffm_flower.records import CONFIG, PROTOCOL, failure_of, modules_of, text
from hffm_flower.tasks import difference
from hffm_flower.version import __version__
from strategies.grids import INIT, PROFILE_QUERY, instruction
from strategies.modular import Member

log = logging.getLogger(__name__)

PROFILE = "profile"
VERSION = f"{__version__} (protocol {PROTOCOL})"
"""Package and protocol that nodes must have."""
Settings = Mapping[str, object]
MOST_TOLD: Final = 5
"""Of so many other settings the values are told."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A device that has been accepted.

    Attributes:
        profile: What it is.
        layout: ``kind/name/tensor`` -> dtype and shape, of every module that it holds.
        skipped: Task -> reason -> examples of its own folders that it does not use.
        ranks: LoRA module -> its rank.
    """

    profile: NodeProfile
    layout: Mapping[str, str]
    skipped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    ranks: Mapping[ModuleKey, int] = field(default_factory=dict)

    def member(self) -> Member:
        """The device as its edge knows it."""
        own = self.profile
        total = sum(own.tasks.values())
        return Member(own.index, self.keys, total, own.tests, self.ranks, own.lent)

    @property
    def keys(self) -> tuple[ModuleKey, ...]:
        """Modules that it holds, sorted."""
        return tuple(sorted({ModuleKey.parse(name.rpartition("/")[0]) for name in self.layout}))


def wait_for_nodes(
    grid: Grid, count: int, *, least: int, deadline_s: float, stopped: Callable[[], bool]
) -> tuple[int, ...]:
    """Node ids, once ``count`` are online, or after ``deadline_s`` [s] if ``least`` are.

    Raises:
        QuorumError: Fewer than ``least`` are online by then.
        Interrupted: The run was asked to stop.
    """
    until = time.monotonic() + deadline_s
    while True:
        online = sorted(grid.get_node_ids())
        if len(online) >= count:
            return tuple(online)
        if stopped():
            raise Interrupted("stopped on request")
        if time.monotonic() > until:
            if len(online) >= least:
                log.warning("only %d of %d nodes are online", len(online), count)
                return tuple(online)
            raise QuorumError(f"{len(online)} of {count} nodes were online after {deadline_s:g} s")
        time.sleep(0.05)


def register(
    grid: Grid,
    nodes: Collection[int],
    *,
    version: str,
    settings: Settings,
    deadline_s: float,
    what: str = "device",
) -> tuple[dict[int, Registered], dict[int, str]]:
    """Ask every node for its profile.

    Args:
        grid: Grid of the devices.
        nodes: Node ids.
        version: Package and protocol version that nodes must have.
        settings: What nodes must have, as `RunConfig.shared` says it.
        deadline_s: How long to wait [s].
        what: What the nodes are, for messages.

    Returns:
        Accepted devices by node id, in order of device index; refused node ids with why.
    """
    questions = [
        instruction(
            RecordDict({CONFIG: ConfigRecord({"t": 0})}),
            node_id=n, kind=PROFILE_QUERY, t=0, ttl_s=deadline_s,
        )
        for n in nodes
    ]  # fmt: skip
    known: dict[str, tuple[int, str]] = {}
    accepted: dict[int, Registered] = {}
    refused: dict[int, str] = {}
    found: list[tuple[int, int, Registered]] = []
    for reply in grid.send_and_receive(questions, timeout=deadline_s):
        node = reply.metadata.src_node_id
        try:
            device = _read(reply, version, settings, what)
            found.append((device.profile.index, node, device))
        except (HffmError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            refused[node] = f"profile of node {node} cannot be used: {error}"
    for index, node, device in sorted(found, key=lambda item: item[:2]):
        if any(index == other.profile.index for other in accepted.values()):
            refused[node] = f"{what} index {index} is taken by another node"
            continue
        odd = [
            f"{name} is {shape}, but {known[name][1]} on {what} {known[name][0]}"
            for name, shape in device.layout.items()
            if name in known and known[name][1] != shape
        ]
        if odd:
            refused[node] = f"{what} {index}: " + "; ".join(odd)
            continue
        known |= {
            name: (index, shape) for name, shape in device.layout.items() if name not in known
        }
        accepted[node] = device
        if device.skipped:
            log.warning("device %d does not use of its own data: %s", index, device.skipped)
    for node, why in refused.items():
        log.warning("node %d refused: %s", node, why)
    return accepted, refused


def initial_modules(
    grid: Grid,
    devices: Mapping[int, Registered],
    wanted: Collection[ModuleKey],
    *,
    deadline_s: float,
) -> tuple[dict[ModuleKey, ModuleState], dict[int, str]]:
    """Initial value of every module in ``wanted``, from its lowest-index holder.

    A device that does not answer, or sends no modules that fit its profile, is left out and
    the next holder gives its modules.

    Returns:
        The modules; the node ids that were left out, with why.

    Raises:
        ProtocolError: A device holds other bits; the message says which.
    """
    modules: dict[ModuleKey, ModuleState] = {}
    digests: dict[int, dict[str, str]] = {n: {} for n in devices}
    refused: dict[int, str] = {}
    left = dict(devices)
    while giver := _givers(left, set(wanted) - modules.keys()):
        questions = _questions(left, giver, first=not modules and not refused, ttl_s=deadline_s)
        for reply in grid.send_and_receive(questions, timeout=deadline_s):
            node = reply.metadata.src_node_id
            try:
                given, theirs = _initial(reply, left[node], [k for k in giver if giver[k] == node])
            except HffmError as error:
                device = left.pop(node)
                refused[node] = f"device {device.profile.index} gave no initial modules: {error}"
                log.warning("node %d refused: %s", node, refused[node])
            else:
                modules |= given
                digests[node] |= theirs | {str(k): digest(state) for k, state in given.items()}
    own = {str(key): digest(state) for key, state in modules.items()}
    for node, device in left.items():
        held = [str(k) for k in device.keys if k in modules]
        other = [name for name in held if digests[node].get(name) != own[name]]
        if other:
            raise ProtocolError(
                f"device {device.profile.index} begins with other bits in {', '.join(other)}; "
                "all devices need the same seed and the same versions of the packages"
            )
    return dict(sorted(modules.items())), refused


def _givers(
    devices: Mapping[int, Registered], wanted: Collection[ModuleKey]
) -> dict[ModuleKey, int]:
    """Module -> node of its first holder; none where nobody holds it."""
    giver: dict[ModuleKey, int] = {}
    for node, device in devices.items():
        for key in device.keys:
            if key in wanted:
                giver.setdefault(key, node)
    return giver


def _questions(
    devices: Mapping[int, Registered], giver: Mapping[ModuleKey, int], *, first: bool, ttl_s: float
) -> list[Message]:
    """To a giver: send the module; at ``first`` also to the other holders: its digest."""
    questions = []
    for node, device in devices.items():
        send = [str(k) for k in device.keys if giver.get(k) == node]
        hashed = [str(k) for k in device.keys if k in giver and giver[k] != node] if first else []
        if send or hashed:
            words = {"send": " ".join(send), "digest": " ".join(hashed)}
            content = RecordDict({CONFIG: ConfigRecord({"t": 0, **words})})
            questions.append(instruction(content, node_id=node, kind=INIT, t=0, ttl_s=ttl_s))
    return questions


def _initial(
    reply: Message, device: Registered, asked: Collection[ModuleKey]
) -> tuple[dict[ModuleKey, ModuleState], dict[str, str]]:
    if reply.has_error():
        raise ProtocolError(failure_of(reply))
    modules = {k: s for k, s in modules_of(reply.content).items() if k in asked}
    layout = shapes(modules)
    missing = [str(k) for k in asked if k not in modules]
    odd = [name for name, shape in layout.items() if device.layout.get(name) != shape]
    if missing or odd:
        raise ProtocolError(f"{', '.join(missing + odd)} is missing or not as in its profile")
    try:
        return dict(modules), dict(json.loads(text(reply.content, "digests", "json")))
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"its digests cannot be read: {error}") from error


def _read(reply: Message, version: str, settings: Settings, what: str) -> Registered:
    if reply.has_error():
        raise ProtocolError(f"no profile: {failure_of(reply)}")
    raw = json.loads(text(reply.content, PROFILE, "json"))
    if raw.get("version") != version:
        raise ProtocolError(
            f"{what} {raw.get('index')}: its version {raw.get('version')}, here {version}"
        )
    odd = _other_settings(raw.get("settings", {}), settings)
    odd = odd or difference(raw.get("definitions", {}))
    if odd:
        raise ProtocolError(f"{what} {raw.get('index')}: {odd}")
    ranks = {ModuleKey.parse(k): whole(r, "rank", 1) for k, r in raw.get("ranks", {}).items()}
    skipped = _counts(raw.get("skipped", {}))
    device = Registered(profile_of(raw), dict(raw["layout"]), skipped, ranks)
    _ = device.keys  # layout names are checked here, where a bad one refuses this node alone
    return device


def _other_settings(theirs: Settings, ours: Settings) -> str:
    """Names and values of settings that differ; empty if none do."""
    odd = [n for n in sorted({*theirs, *ours}) if theirs.get(n) != ours.get(n)]
    told = [f"its {n} {theirs.get(n)!r}, here {ours.get(n)!r}" for n in odd[:MOST_TOLD]]
    more = [f"{len(odd) - MOST_TOLD} more settings differ"] if len(odd) > MOST_TOLD else []
    return ", ".join(told + more)


def _counts(raw: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    return {
        str(task): {str(why): int(count) for why, count in reasons.items()}
        for task, reasons in raw.items()
    }
