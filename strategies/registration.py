"""Before round 1: who is there, what each one holds, and the same initial bits for all.

Every device answers ``query.profile``; one that differs in version, settings or module
layout is refused with the difference. Each module is then taken from its lowest-index
holder by ``query.init``; every other holder answers a digest, and a mismatch ends the run.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from hffm_flower.errors import HffmError, Interrupted, ProtocolError, QuorumError
from hffm_flower.modules import ModuleKey, ModuleState, digest
from hffm_flower.profile import NodeProfile
from hffm_flower.records import CONFIG, modules_of, text
from strategies.grids import instruction

log = logging.getLogger(__name__)

PROFILE = "profile"


@dataclass(frozen=True, slots=True)
class Registered:
    """A device that has been accepted.

    Attributes:
        profile: What it is.
        layout: ``kind/name/tensor`` -> dtype and shape, of every module that it holds.
    """

    profile: NodeProfile
    layout: Mapping[str, str]

    @property
    def keys(self) -> tuple[ModuleKey, ...]:
        """Modules that it holds, sorted."""
        return tuple(sorted({ModuleKey.parse(name.rpartition("/")[0]) for name in self.layout}))


def wait_for_nodes(
    grid: Grid, count: int, *, deadline_s: float, stopped: Callable[[], bool]
) -> tuple[int, ...]:
    """Node ids, once ``count`` are online.

    Raises:
        QuorumError: Fewer are online after ``deadline_s`` [s].
        Interrupted: The run was asked to stop.
    """
    until = time.monotonic() + deadline_s
    while True:
        online = sorted(grid.get_node_ids())
        if len(online) >= count:
            return tuple(online)
        if stopped():
            raise Interrupted("stopped while waiting for nodes")
        if time.monotonic() > until:
            raise QuorumError(f"{len(online)} of {count} nodes were online after {deadline_s:g} s")
        time.sleep(0.05)


def register(
    grid: Grid, nodes: Collection[int], *, version: str, fingerprint: str, deadline_s: float
) -> tuple[dict[int, Registered], dict[int, str]]:
    """Ask every node for its profile.

    Args:
        grid: Grid of the devices.
        nodes: Node ids.
        version: Package and protocol version that nodes must have.
        fingerprint: Digest of the settings that nodes must have.
        deadline_s: How long to wait [s].

    Returns:
        Accepted devices by node id, in order of device index; refused node ids with why.
    """
    questions = [
        instruction(
            RecordDict({CONFIG: ConfigRecord({"t": 0})}),
            node_id=n, kind="query.profile", t=0, ttl_s=deadline_s,
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
            device = _read(reply, version, fingerprint)
            found.append((device.profile.index, node, device))
        except (HffmError, ValueError, KeyError, TypeError, AttributeError) as error:
            refused[node] = f"profile of node {node} cannot be used: {error}"
    for index, node, device in sorted(found, key=lambda item: item[:2]):
        if any(index == other.profile.index for other in accepted.values()):
            refused[node] = f"device index {index} is taken by another node"
            continue
        odd = [
            f"{name} is {shape}, but {known[name][1]} on device {known[name][0]}"
            for name, shape in device.layout.items()
            if name in known and known[name][1] != shape
        ]
        if odd:
            refused[node] = f"device {index}: " + "; ".join(odd)
            continue
        known |= {
            name: (index, shape) for name, shape in device.layout.items() if name not in known
        }
        accepted[node] = device
    for node, why in refused.items():
        log.warning("node %d refused: %s", node, why)
    return accepted, refused


def initial_modules(
    grid: Grid,
    devices: Mapping[int, Registered],
    wanted: Collection[ModuleKey],
    *,
    deadline_s: float,
) -> dict[ModuleKey, ModuleState]:
    """Initial value of every module in ``wanted``, from its lowest-index holder.

    Raises:
        ProtocolError: A holder does not answer, or holds other bits; the message says which.
    """
    giver: dict[ModuleKey, int] = {}
    for node, device in devices.items():
        for key in device.keys:
            if key in wanted:
                giver.setdefault(key, node)
    questions = []
    for node, device in devices.items():
        held = [k for k in device.keys if k in giver]
        words = {
            "send": " ".join(str(k) for k in held if giver[k] == node),
            "digest": " ".join(str(k) for k in held if giver[k] != node),
        }
        if held:
            content = RecordDict({CONFIG: ConfigRecord({"t": 0, **words})})
            questions.append(
                instruction(content, node_id=node, kind="query.init", t=0, ttl_s=deadline_s)
            )
    modules: dict[ModuleKey, ModuleState] = {}
    digests: dict[int, dict[str, str]] = {}
    for reply in grid.send_and_receive(questions, timeout=deadline_s):
        index = devices[reply.metadata.src_node_id].profile.index
        if reply.has_error():
            raise ProtocolError(f"device {index} gave no initial modules: {reply.error.reason}")
        modules |= modules_of(reply.content)
        try:
            digests[index] = dict(json.loads(text(reply.content, "digests", "json")))
        except (TypeError, ValueError, ProtocolError) as error:
            raise ProtocolError(f"device {index} gave no digests: {error}") from error
    absent = sorted(str(k) for k in giver if k not in modules)
    if absent:
        raise ProtocolError(f"no device sent the initial {', '.join(absent)}")
    own = {str(key): digest(state) for key, state in modules.items()}
    for node, device in devices.items():
        index = device.profile.index
        asked = [str(k) for k in device.keys if k in giver and giver[k] != node]
        other = [name for name in asked if digests[index].get(name) != own[name]]
        if other:
            raise ProtocolError(
                f"device {index} begins with other bits in {', '.join(other)}; "
                "all devices need the same seed and the same versions of the packages"
            )
    return dict(sorted(modules.items()))


def _read(reply: Message, version: str, fingerprint: str) -> Registered:
    if reply.has_error():
        raise ProtocolError(f"no profile: error {reply.error.code}: {reply.error.reason}")
    raw = json.loads(text(reply.content, PROFILE, "json"))
    for name, theirs, ours in (
        ("version", raw.get("version"), version),
        ("settings", raw.get("fingerprint"), fingerprint),
    ):
        if theirs != ours:
            raise ProtocolError(f"device {raw.get('index')}: its {name} {theirs}, here {ours}")
    profile = NodeProfile(
        index=int(raw["index"]),
        modalities=tuple(raw["modalities"]),
        tasks={str(t): int(n) for t, n in raw["tasks"].items()},
        wanted=tuple(raw["wanted"]),
        tests={str(t): int(n) for t, n in raw["tests"].items()},
    )
    device = Registered(profile, dict(raw["layout"]))
    _ = device.keys  # layout names are checked here, where a bad one refuses this node alone
    return device
