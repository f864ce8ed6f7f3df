"""What a message weighs, and the records by which an edge has its devices exchange updates.

An instruction with record `PLAN` is carried out with neighbours. In a deployment the record
also admits the device to its peers (`Admission`), and the reply says what it sent to them.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from hffm_flower.d2d import Parcel
from hffm_flower.errors import ConfigError, ModuleError, ProtocolError
from hffm_flower.ledger import (
    DEVICE,
    PRICED,
    Phase,
    Transfer,
    from_line,
    link_between,
    node_of,
    to_line,
)
from hffm_flower.modules import ModularUpdate, ModuleKey, ModuleKind
from hffm_flower.records import MODULES, mass_record, modules_of, modules_record, text, words
from hffm_flower.rpc.codec import Allowed
from hffm_flower.rpc.letters import Letter
from hffm_flower.rpc.tickets import Ticket

PLAN: Final = "d2d"
"""Config record of an instruction that is carried out with neighbours."""
TRAINED: Final = "trained"
"""Metric record of a reply: what the device itself has trained, module -> examples."""
PARCELS: Final = "parcels"
SENT: Final = "sent"
"""Config record of a reply: what the device sent to peers."""
LACKING: Final = "lacking"
"""Config record of a reply: modules that no peer brought, so that nothing could be trained."""


@dataclass(frozen=True, slots=True)
class Weight:
    """Size of a message.

    Attributes:
        header_bytes: Everything but tensors of the serialised message [byte].
        modules: Names of the modules.
        sizes: Tensors of each of them, in that order [byte].
    """

    header_bytes: int
    modules: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        """The modules' tensors [byte]."""
        return sum(self.sizes)


def weigh(content: RecordDict) -> Weight:
    """Weight of a message: of its serialised `RecordDict`, without the transport's framing."""
    total = recorddict_to_proto(content).ByteSize()
    sizes = Counter[str]()
    for name, record in content.array_records.items():
        if name.split(".")[0] == MODULES and list(record) == [MODULES]:
            manifest = _manifest(record[MODULES].data)
            for tensor, (start, end) in manifest.items():
                if named := _module_of(tensor):
                    sizes[named] += end - start
    names = tuple(sorted(sizes))
    return Weight(total - sizes.total(), names, tuple(sizes[name] for name in names))


def weigh_letter(letter: Letter) -> Weight:
    """Weight of a message between peers, without the transport's framing."""
    names = tuple(map(str, letter.modules))
    return Weight(letter.total_bytes - letter.tensor_bytes, names, letter.sizes)


def peer_transfer(t: int, phase: Phase, step: int, src: int, dst: int, weight: Weight) -> Transfer:
    """The ledger's row of a message from device ``src`` to device ``dst``."""
    a, b = f"{DEVICE}/{src}", f"{DEVICE}/{dst}"
    return Transfer(
        t, phase, step, a, b, link_between(a, b),
        weight.header_bytes, weight.modules, weight.sizes,
    )  # fmt: skip


def bytes_by_kind(
    transfers: Iterable[Transfer], phases: Iterable[Phase] = PRICED
) -> dict[str, int]:
    """Bytes of tensors by kind of module, over all links, in those ``phases``.

    Raises:
        ModuleError: A transfer names what is no module.
    """
    wanted = frozenset(phases)
    sums = {str(kind): 0 for kind in ModuleKind}
    for row in transfers:
        if row.phase in wanted:
            for name, size in zip(row.modules, row.sizes, strict=True):
                sums[ModuleKey.parse(name).kind] += size
    return sums


def packed(parcels: Sequence[Parcel]) -> RecordDict:
    """A message with ``parcels``, in their order; inverse of `parcels_of`."""
    content = RecordDict()
    notes = []
    for place, parcel in enumerate(parcels):
        content[f"{MODULES}.{place}"] = modules_record(parcel.update.state)
        behind = {
            str(key): {str(device): mass for device, mass in sorted(who.items())}
            for key, who in sorted(parcel.behind.items())
        }
        notes.append(json.dumps({"behind": behind, "intact": parcel.intact}))
    content[PARCELS] = ConfigRecord({"notes": notes})
    return content


def parcels_of(content: RecordDict) -> tuple[Parcel, ...]:
    """Parcels of a message; none if it carries none.

    Raises:
        ModuleError: The records are not what `packed` makes.
    """
    notes = words(content, PARCELS).get("notes", [])
    if not isinstance(notes, list):
        raise ModuleError(f"record {PARCELS!r} has no list of notes")
    parcels = []
    for place, note_text in enumerate(notes):
        state = modules_of(content, f"{MODULES}.{place}")
        try:
            note = json.loads(str(note_text))
            behind = {
                ModuleKey.parse(key): {int(d): float(mass) for d, mass in who.items()}
                for key, who in note["behind"].items()
            }
            intact = note["intact"] is True
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModuleError(f"note {place} of the parcels cannot be read: {error}") from error
        mass = {key: sum(who.values()) for key, who in behind.items()}
        parcels.append(Parcel(ModularUpdate(state, mass), behind, intact))
    return tuple(parcels)


def trained_record(update: ModularUpdate) -> MetricRecord:
    """Record `TRAINED` of a device whose modules may go another way."""
    return mass_record(update.mass)


@dataclass(frozen=True, slots=True)
class Admission:
    """What a deployed device needs to play a plan with its peers.

    Attributes:
        ticket: Where its peers are, and its pairs' keys.
        allowed: What their messages may hold.
        deadline_s: How long the edge waits for the reply [s].
        digests: `hffm_flower.modules.digest` of every module that the edge has published.
    """

    ticket: Ticket
    allowed: Allowed
    deadline_s: float
    digests: Mapping[ModuleKey, str]


def plan_record(
    plan: str, keys: Iterable[ModuleKey], admission: Admission | None = None
) -> ConfigRecord:
    """Record `PLAN`: the cluster's plan, and the shared modules that this device trains."""
    record = ConfigRecord({"plan": plan, "keys": " ".join(map(str, keys))})
    if admission is not None:
        allowed = admission.allowed
        may = {
            "layout": dict(allowed.layout),
            "examples": {str(d): n for d, n in sorted(allowed.examples.items())},
            "digests": {str(k): sha for k, sha in sorted(admission.digests.items())},
        }
        record["ticket"] = admission.ticket.to_json()
        record["allowed"] = json.dumps(may, separators=(",", ":"))
        record["deadline_s"] = admission.deadline_s
    return record


def plan_of(content: RecordDict) -> tuple[str, tuple[ModuleKey, ...]] | None:
    """Plan and keys of an instruction; None where the device is to work alone.

    Raises:
        ProtocolError: The record is incomplete.
    """
    found = words(content, PLAN)
    if not found:
        return None
    plan, keys = found.get("plan"), found.get("keys")
    if not isinstance(plan, str) or not isinstance(keys, str):
        raise ProtocolError(f"record {PLAN!r} needs the texts plan and keys")
    return plan, tuple(map(ModuleKey.parse, keys.split()))


def admission_of(content: RecordDict) -> Admission:
    """Admission of an instruction with a plan.

    Raises:
        ProtocolError: There is none, or it cannot be read.
    """
    ticket = Ticket.from_json(text(content, PLAN, "ticket"))
    deadline_s = words(content, PLAN).get("deadline_s")
    try:
        may = json.loads(text(content, PLAN, "allowed"))
        allowed = Allowed(
            {str(name): str(kind) for name, kind in may["layout"].items()},
            {int(d): float(n) for d, n in may["examples"].items()},
        )
        digests = {ModuleKey.parse(k): str(sha) for k, sha in may["digests"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, ModuleError) as error:
        raise ProtocolError(f"record {PLAN!r}: what is allowed cannot be read: {error}") from error
    if not isinstance(deadline_s, float) or not deadline_s > 0:
        raise ProtocolError(f"record {PLAN!r} has the deadline {deadline_s!r}")
    return Admission(ticket, allowed, deadline_s, digests)


def sent_record(t: int, transfers: Sequence[Transfer]) -> ConfigRecord:
    """Record `SENT`."""
    return ConfigRecord({"line": to_line(t, transfers)})


def sent_of(content: RecordDict, t: int, src: int) -> tuple[Transfer, ...]:
    """What device ``src`` says that it sent to peers in edge round ``t``.

    Raises:
        ProtocolError: It says what cannot be.
    """
    if SENT not in content.config_records:
        return ()
    try:
        told, rows = from_line(text(content, SENT, "line"))
        fits = told == t and all(
            row.phase in (Phase.SHARE, Phase.EXCHANGE)
            and row.src == f"{DEVICE}/{src}"
            and node_of(row.dst)[0] == DEVICE
            and row.link is link_between(row.src, row.dst)
            and all(type(n) is int for n in (row.step, row.header_bytes, *row.sizes))
            and all(ModuleKey.parse(name) for name in row.modules)
            for row in rows
        )
    except (ConfigError, ModuleError) as error:
        raise ProtocolError(f"record {SENT!r} cannot be read: {error}") from error
    if not fits:
        raise ProtocolError(f"record {SENT!r} tells of another's messages, or of another round")
    return rows


def is_lacking(content: RecordDict) -> bool:
    """Whether the device could not train for want of modules."""
    return LACKING in content.config_records


def own_upload(update: ModularUpdate, keys: Iterable[ModuleKey]) -> ModularUpdate:
    """What a device answers to ``query.upload``: those modules of its own update with mass."""
    kept = update.only(keys)
    return kept.only(k for k, mass in kept.mass.items() if mass > 0)


def _module_of(tensor: str) -> str:
    """Module of the tensor ``kind/name/tensor``; empty for a tensor of none."""
    try:
        return str(ModuleKey.parse(tensor.rpartition("/")[0]))
    except ModuleError:
        return ""


def _manifest(data: bytes) -> dict[str, tuple[int, int]]:
    """Tensor -> where it lies, read from the head of an array of `modules_record`.

    Nothing for what is no such array; who reads the modules themselves says so.
    """
    stream = io.BytesIO(data)
    try:
        np.lib.format.read_magic(stream)
        np.lib.format.read_array_header_1_0(stream)
        table = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        spans = {
            n: (int(e["data_offsets"][0]), int(e["data_offsets"][1])) for n, e in table.items()
        }
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        return {}
    left = len(data) - stream.tell()
    whole = all(0 <= a <= b <= left for a, b in spans.values())
    return spans if whole and sum(b - a for a, b in spans.values()) <= left else {}
