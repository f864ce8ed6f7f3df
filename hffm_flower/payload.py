"""What a message weighs, and how parcels of a D2D exchange are packed into one."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from hffm_flower.d2d import Parcel
from hffm_flower.errors import ModuleError, ProtocolError
from hffm_flower.modules import ModularUpdate, ModuleKey
from hffm_flower.records import MODULES, mass_record, modules_of, modules_record, words

PLAN: Final = "d2d"
"""Config record of an instruction that is carried out with neighbours."""
TRAINED: Final = "trained"
"""Metric record of a reply: what the device itself has trained, module -> examples."""
PARCELS: Final = "parcels"


@dataclass(frozen=True, slots=True)
class Weight:
    """Size of a message.

    Attributes:
        bytes: The modules' tensors [byte].
        header_bytes: Everything else of the serialised message [byte].
        modules: Names of the modules.
    """

    bytes: int
    header_bytes: int
    modules: tuple[str, ...]


def weigh(content: RecordDict) -> Weight:
    """Weight of a message: of its serialised `RecordDict`, without the transport's framing."""
    total = recorddict_to_proto(content).ByteSize()
    tensors, names = 0, set[str]()
    for name, record in content.array_records.items():
        if name.split(".")[0] == MODULES and list(record) == [MODULES]:
            manifest = _manifest(record[MODULES].data)
            tensors += sum(b - a for a, b in manifest.values())
            names |= {tensor.rpartition("/")[0] for tensor in manifest}
    return Weight(tensors, total - tensors, tuple(sorted(names)))


def weigh_parcels(parcels: Sequence[Parcel]) -> Weight:
    """Weight of parcels on their way between peers, packed as in a message."""
    return weigh(packed(parcels))


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
    for place, text in enumerate(notes):
        state = modules_of(content, f"{MODULES}.{place}")
        try:
            note = json.loads(str(text))
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


def plan_record(plan: str, keys: Iterable[ModuleKey]) -> ConfigRecord:
    """Record `PLAN`: the cluster's plan, and the shared modules that this device trains."""
    return ConfigRecord({"plan": plan, "keys": " ".join(map(str, keys))})


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
