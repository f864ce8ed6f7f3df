"""Devices that fail, lie or fall silent, in a federation on the fake grid."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import Enum, auto
from pathlib import Path
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

from hffm_flower.config import RunConfig
from hffm_flower.modules import ModuleKey
from hffm_flower.records import (
    MASS,
    MODULES,
    mass_record,
    modules_of,
    modules_record,
    update_of,
)
from tests.support.fake_grid import FIRST_NODE, FakeGrid
from tests.support.played import Played, RecordingApp, play

DEADLINE_S: Final = 0.4


FAULTY: Final = 3
"""On edge 1, with devices 4 and 5; edge 0 has devices 1 and 2, device 0 is idle."""


class Fault(Enum):
    """What a faulty device does when it is asked to train."""

    RAISES = auto()
    SILENT = auto()
    WRONG_SHAPE = auto()
    OTHER_TENSOR = auto()
    OTHER_DTYPE = auto()
    NOT_ASKED = auto()
    NAN = auto()
    INFINITE = auto()
    GARBAGE = auto()
    NEGATIVE_MASS = auto()
    NAN_MASS = auto()
    LIST_OF_MASSES = auto()
    MASS_WITHOUT_MODULES = auto()
    NO_MASS = auto()


REASON: Final = {
    Fault.RAISES: "out of order",
    Fault.SILENT: "no answer within 0.4 s",
    Fault.WRONG_SHAPE: "other names or shapes",
    Fault.OTHER_TENSOR: "other names or shapes",
    Fault.OTHER_DTYPE: "is float64, not float32",
    Fault.NOT_ASKED: "sent head/tiny-unknown, which it was not asked for",
    Fault.NAN: "is not finite",
    Fault.INFINITE: "is not finite",
    Fault.GARBAGE: "not a safetensors file",
    Fault.NEGATIVE_MASS: "mass must be finite and not negative",
    Fault.NAN_MASS: "mass must be finite and not negative",
    Fault.LIST_OF_MASSES: "is a list",
    Fault.MASS_WITHOUT_MODULES: "state and mass name different modules",
    Fault.NO_MASS: "state and mass name different modules",
}


def spoil(reply: Message, fault: Fault) -> Message:
    """The device's honest reply, made into that of ``fault``."""
    state = {k: {n: a.copy() for n, a in s.items()} for k, s in modules_of(reply.content).items()}
    masses = dict(update_of(reply.content).mass)
    key = sorted(state)[-1]
    name = sorted(state[key])[0]
    tensor = state[key][name]
    match fault:
        case Fault.RAISES:
            raise RuntimeError("out of order")
        case Fault.WRONG_SHAPE:
            state[key][name] = np.zeros((*tensor.shape, 2), np.float32)
        case Fault.OTHER_TENSOR:
            state[key]["strange"] = state[key].pop(name)
        case Fault.OTHER_DTYPE:
            state[key][name] = tensor.astype(np.float64)
        case Fault.NOT_ASKED:
            strange = ModuleKey.parse("head/tiny-unknown")
            state[strange], masses[strange] = state[key], 5.0
        case Fault.NAN:
            tensor.flat[-1] = np.nan
        case Fault.INFINITE:
            tensor.flat[-1] = np.inf
        case Fault.NEGATIVE_MASS:
            masses[key] = -1.0
        case Fault.NAN_MASS:
            masses[key] = float("nan")
        case Fault.MASS_WITHOUT_MODULES:
            state.clear()
        case Fault.NO_MASS:
            masses.clear()
    modules = modules_record(state)
    if fault is Fault.GARBAGE:
        modules = ArrayRecord({MODULES: Array(np.arange(200, dtype=np.uint8))})
    mass = mass_record(masses)
    if fault is Fault.LIST_OF_MASSES:
        mass = MetricRecord({str(key): [1.0, 2.0]})
    return Message(RecordDict({**reply.content, MODULES: modules, MASS: mass}), reply_to=reply)


class FaultyApp(RecordingApp):
    """Some devices are faulty from some edge round on."""

    def __init__(self, fault: Fault, devices: Collection[int] = (FAULTY,), first: int = 1) -> None:
        super().__init__()
        self.fault, self.devices, self.first = fault, frozenset(devices), first

    def answer(
        self, message: Message, context: Context, *, index: int, kind: str, t: int
    ) -> Message:
        reply = super().answer(message, context, index=index, kind=kind, t=t)
        if index in self.devices and kind == "train" and t >= self.first:
            if self.fault is Fault.SILENT:
                return reply
            content = spoil(reply, self.fault).content
            return Message(content, reply_to=message)
        return reply


def grid_with(silent: Mapping[int, int], kinds: Collection[str] = ("train",)) -> type[FakeGrid]:
    """Grid on which devices (index -> from which edge round on) do not answer ``kinds``."""

    class Quiet(FakeGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return [
                reply
                for reply in super().pull_messages(message_ids)
                if reply.metadata.message_type not in kinds
                or int(reply.metadata.group_id)
                < silent.get(reply.metadata.src_node_id - FIRST_NODE, 1000)
            ]

    return Quiet


def faulty(
    config: RunConfig, out: Path, fault: Fault, devices: Collection[int] = (FAULTY,), first: int = 1
) -> Played:
    silent = dict.fromkeys(devices, first) if fault is Fault.SILENT else {}
    return play(config, out, app=FaultyApp(fault, devices, first), grid=grid_with(silent))
