"""What travels: modules as one array, masses, and the words of a message.

Flower's cost is per array, so all tensors of a message are ONE uint8 array whose bytes
are a safetensors file; the file's header is the manifest (``kind/name/tensor``).
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from safetensors import SafetensorError
from safetensors.numpy import load, save

from hffm_flower.errors import ModuleError, ProtocolError
from hffm_flower.modules import ModularState, ModularUpdate, ModuleKey, Tensor

PROTOCOL: Final = 1
"""Version of the messages between the tiers; nodes of another version are refused."""

MODULES: Final = "modules"
MASS: Final = "mass"
TAILS: Final = "tails"
CONFIG: Final = "config"
REPORT: Final = "report"
TRANSFERS: Final = "transfers"
"""In a deployed edge's report: lines of its ledger."""

_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")


def to_bytes(state: ModularState) -> bytes:
    """Safetensors bytes of ``state``, tensors named ``kind/name/tensor``."""
    return save(
        {
            f"{key}/{name}": np.asarray(array, order="C")  # keeps shape ()
            for key in sorted(state)
            for name, array in sorted(state[key].items())
        }
    )


def from_bytes(data: bytes) -> dict[ModuleKey, dict[str, Tensor]]:
    """Read `to_bytes` back.

    Raises:
        ModuleError: The bytes are no safetensors file, or a name is not of that form.
    """
    try:
        flat = load(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that numpy lacks
        raise ModuleError(f"not a safetensors file of modules: {error}") from error
    state: dict[ModuleKey, dict[str, Tensor]] = defaultdict(dict)
    for name, array in flat.items():
        key, _, tensor = name.rpartition("/")
        state[ModuleKey.parse(key)][tensor] = array
    return dict(sorted(state.items()))


def write_state(path: Path, state: ModularState) -> None:
    """Write ``state`` as a safetensors file, whole or not at all."""
    write_bytes(path, to_bytes(state))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as part:
        try:
            part.write(data)
            part.flush()
            os.chmod(part.name, 0o644)
            os.replace(part.name, path)
        except BaseException:  # such as a full disk, which then has room again
            Path(part.name).unlink(missing_ok=True)
            raise


def read_state(path: Path) -> dict[ModuleKey, dict[str, Tensor]]:
    """Read a file of `write_state`.

    Raises:
        ModuleError: The file is damaged or holds something else.
    """
    try:
        return from_bytes(path.read_bytes())
    except (ModuleError, OSError) as error:
        raise ModuleError(f"{path}: {error}") from error


def modules_record(state: ModularState) -> ArrayRecord:
    """Pack ``state`` into the record that every message uses."""
    data = np.frombuffer(to_bytes(state), dtype=np.uint8)
    return ArrayRecord({MODULES: Array(data)})


def modules_of(content: RecordDict, name: str = MODULES) -> dict[ModuleKey, dict[str, Tensor]]:
    """Modules in record ``name`` of a message; none if it carries none.

    Raises:
        ModuleError: The record is not what `modules_record` makes.
    """
    record = content.array_records.get(name)
    if record is None:
        return {}
    if list(record) != [MODULES]:
        raise ModuleError(f"record {name!r} holds {list(record)}; one array is expected")
    try:
        data = record[MODULES].numpy()
    except (TypeError, ValueError, EOFError) as error:
        raise ModuleError(f"record {name!r} is no numpy array: {error}") from error
    return from_bytes(data.tobytes())


def mass_record(mass: Mapping[ModuleKey, float]) -> MetricRecord:
    """Masses as ``{"kind/name": examples}``."""
    return MetricRecord({str(key): float(value) for key, value in sorted(mass.items())})


def update_of(content: RecordDict) -> ModularUpdate:
    """The update in a reply; empty if its mass went another way.

    Raises:
        ModuleError: Modules and masses do not name the same modules.
    """
    return ModularUpdate(modules_of(content), masses(content))


def masses(content: RecordDict, record: str = MASS) -> dict[ModuleKey, float]:
    """Masses in record ``record`` of a message.

    Raises:
        ModuleError: They are not what `mass_record` makes.
    """
    mass: dict[ModuleKey, float] = {}
    for name, value in metrics(content, record).items():
        if isinstance(value, list):
            raise ModuleError(f"mass of {name} is a list")
        mass[ModuleKey.parse(name)] = float(value)
    return mass


def metrics(
    content: RecordDict, record: str
) -> Mapping[str, int | float | list[int] | list[float]]:
    """A metric record of a message; empty if it is not there."""
    found = content.metric_records.get(record)
    return {} if found is None else dict(found)


def words(content: RecordDict, record: str) -> Mapping[str, object]:
    """A config record of a message; empty if it is not there."""
    found = content.config_records.get(record)
    return {} if found is None else dict(found)


def text(content: RecordDict, record: str, name: str) -> str:
    """A string of a config record.

    Raises:
        ProtocolError: It is not there.
    """
    value = words(content, record).get(name)
    if not isinstance(value, str):
        raise ProtocolError(f"the message has no text {record}.{name}")
    return value


def failure_of(reply: Message) -> str:
    """Why a node did not answer, in one line: of a traceback its last one, which is the cause."""
    lines = [line.strip() for line in _COLOURS.sub("", reply.error.reason or "").splitlines()]
    lines = [line for line in lines if line]
    traced = any(line.startswith('File "') for line in lines)
    why = lines[-1].removesuffix("'>") if traced else " ".join(lines)
    return f"error {reply.error.code}: {why}"


def number(content: RecordDict, record: str, name: str, *, default: int | None = None) -> int:
    """A whole number of a config record.

    Raises:
        ProtocolError: It is not there, and there is no ``default``.
    """
    value = words(content, record).get(name, default)
    if not isinstance(value, int):
        raise ProtocolError(f"the message has no whole number {record}.{name}")
    return value
