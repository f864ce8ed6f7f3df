"""Messages on the scales, and parcels packed into them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from hffm_flower.d2d import Parcel
from hffm_flower.errors import ModuleError, ProtocolError
from hffm_flower.ledger import LinkClass, Phase, Transfer, traffic
from hffm_flower.modules import ModularState, ModularUpdate, ModuleKey, ModuleKind
from hffm_flower.payload import (
    PARCELS,
    PLAN,
    TRAINED,
    bytes_by_kind,
    packed,
    parcels_of,
    plan_of,
    plan_record,
    trained_record,
    weigh,
)
from hffm_flower.records import MASS, MODULES, mass_record, masses, modules_record, to_bytes

A, B = (ModuleKey.parse(text) for text in ("adapter/a", "head/b"))
STATE: ModularState = {
    A: {"w": np.ones((3, 5), np.float32), "scale": np.full((), 2, np.float32)},
    B: {"w": np.zeros(7, np.float32)},
}
BYTES = 4 * (15 + 1 + 7)


def parcel(device: int, mass: float = 4.0, *, intact: bool = True) -> Parcel:
    own = Parcel.of(ModularUpdate.of(STATE, mass), device)
    return Parcel(own.update, own.behind, intact)


def sent(content: RecordDict) -> RecordDict:
    """As it arrives."""
    return recorddict_from_proto(recorddict_to_proto(content))


def test_tensors_and_the_rest_are_the_whole_message() -> None:
    mass = mass_record(dict.fromkeys(STATE, 3.0))
    content = RecordDict({MODULES: modules_record(STATE), MASS: mass})
    weight = weigh(content)
    assert weight.bytes == BYTES
    assert weight.bytes + weight.header_bytes == recorddict_to_proto(content).ByteSize()
    assert weight.modules == ("adapter/a", "head/b")
    assert weight.sizes == (4 * 16, 4 * 7)
    lighter = weigh(RecordDict({MODULES: modules_record(STATE)}))
    assert lighter.bytes == BYTES
    assert lighter.header_bytes < weight.header_bytes


def test_a_message_without_modules_is_all_header() -> None:
    content = RecordDict({"config": ConfigRecord({"t": 3})})
    weight = weigh(content)
    assert (weight.bytes, weight.modules) == (0, ())
    assert weight.header_bytes == recorddict_to_proto(content).ByteSize() > 0
    assert weigh(RecordDict({MODULES: modules_record({})})).bytes == 0
    assert weigh(RecordDict()) == type(weight)(0)


def file_of(header: bytes, tensors: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """A safetensors file with that header, and so many bytes of tensors."""
    return np.frombuffer(len(header).to_bytes(8, "little") + header + bytes(tensors), np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        np.arange(200, dtype=np.uint8),
        np.zeros(0, np.uint8),
        np.full(9, 255, np.uint8),
        file_of(b'{"a/b/c":3', 0),
        file_of(b'{"a/b/c":{"data_offsets":[0,9]}}', 8),
        file_of(b'{"a/b/c":{"data_offsets":[5,4]}}', 8),
        file_of(b'{"a/b/c":{"data_offsets":[0,8]},"a/b/d":{"data_offsets":[0,8]}}', 8),
        file_of(b'{"a/b/c":{"data_offsets":[0,1e999]}}', 8),
        file_of(b"[" * 100_000, 8),
        np.frombuffer(to_bytes(STATE)[:-5], np.uint8),
    ],
)
def test_what_is_no_file_of_modules_has_no_tensors(
    data: np.ndarray[tuple[int], np.dtype[np.uint8]],
) -> None:
    content = RecordDict({MODULES: ArrayRecord({MODULES: Array(data)})})
    weight = weigh(content)
    assert (weight.bytes, weight.modules) == (0, ())
    assert weight.header_bytes == recorddict_to_proto(content).ByteSize()


def test_tensors_of_no_module_are_counted_with_the_rest() -> None:
    data = file_of(b'{"robot/a/w":{"data_offsets":[0,8]},"head/b/w":{"data_offsets":[8,20]}}', 20)
    content = RecordDict({MODULES: ArrayRecord({MODULES: Array(data)})})
    weight = weigh(content)
    assert (weight.modules, weight.sizes) == (("head/b",), (12,))
    assert weight.header_bytes == recorddict_to_proto(content).ByteSize() - 12


def test_bytes_by_kind_are_all_that_is_charged() -> None:
    def row(phase: Phase, modules: tuple[str, ...], sizes: tuple[int, ...]) -> Transfer:
        src, dst = "device/0", "edge/0"
        return Transfer(1, phase, 0, src, dst, LinkClass.UPLINK, 5, modules, sizes)

    rows = [
        row(Phase.UP, ("adapter/a", "adapter/b", "head/b"), (1, 10, 100)),
        row(Phase.UP, ("adapter/a",), (4000,)),
        row(Phase.EVALUATE, ("head/b",), (7,)),
        row(Phase.DOWN, (), ()),
    ]
    found = bytes_by_kind(rows)
    assert list(found) == list(ModuleKind)
    assert {kind: size for kind, size in found.items() if size} == {"adapter": 4011, "head": 100}
    assert sum(found.values()) == sum(tensors for tensors, _ in traffic(rows).values())
    assert bytes_by_kind(rows, [Phase.EVALUATE])["head"] == 7


def test_other_arrays_are_no_modules() -> None:
    for record, name in (("other", MODULES), (MODULES, "other")):
        array = modules_record(STATE)[MODULES]
        assert weigh(RecordDict({record: ArrayRecord({name: array})})).bytes == 0


def test_parcels_weigh_what_their_message_does() -> None:
    parcels = (parcel(1), parcel(2))
    weight = weigh(packed(parcels))
    assert weight == weigh(sent(packed(parcels)))
    assert weight.bytes == 2 * BYTES
    assert weight.modules == ("adapter/a", "head/b")
    assert weight.sizes == (2 * 4 * 16, 2 * 4 * 7)
    assert weigh(packed(())).bytes == 0


@pytest.mark.parametrize("count", [0, 1, 3])
def test_parcels_come_out_as_they_went_in(count: int) -> None:
    parcels = tuple(parcel(k, 1 / 3 + k, intact=k % 2 == 0) for k in range(count))
    found = parcels_of(sent(packed(parcels)))
    assert len(found) == count
    for one, other in zip(parcels, found, strict=True):
        assert to_bytes(one.update.state) == to_bytes(other.update.state)
        assert (one.update.mass, one.behind, one.intact) == (
            other.update.mass, other.behind, other.intact,
        )  # fmt: skip


def test_a_message_without_parcels_has_none() -> None:
    assert parcels_of(RecordDict()) == ()
    assert parcels_of(RecordDict({MODULES: modules_record(STATE)})) == ()


NOTE = {"behind": {"adapter/a": {"1": 4.0}, "head/b": {"1": 4.0}}, "intact": True}


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ("{", "note 0 of the parcels cannot be read"),
        ("[]", "note 0 of the parcels cannot be read"),
        (json.dumps({"intact": True}), "cannot be read: 'behind'"),
        (json.dumps({"behind": NOTE["behind"]}), "cannot be read: 'intact'"),
        (json.dumps(NOTE | {"behind": {"adapter/a": 3}}), "cannot be read"),
        (json.dumps(NOTE | {"behind": {"adapter/a": {"one": 3}}}), "cannot be read"),
        (json.dumps(NOTE | {"behind": {"adapter/a": {"1": 4.0}}}), "different modules"),
        (json.dumps(NOTE | {"behind": {"adapter": {"1": 4.0}}}), "not of the form"),
        (json.dumps(NOTE | {"behind": {k: {"1": -1.0} for k in ("adapter/a", "head/b")}}), "mass"),
        (json.dumps(NOTE | {"behind": {k: {"1": 1e999} for k in ("adapter/a", "head/b")}}), "mass"),
    ],
)
def test_parcels_that_cannot_be_read(note: str, said: str) -> None:
    content = packed([parcel(1)])
    content[PARCELS] = ConfigRecord({"notes": [note]})
    with pytest.raises(ModuleError, match=said):
        parcels_of(content)


def test_parcels_without_their_modules_or_notes() -> None:
    content = packed([parcel(1)])
    content[PARCELS] = ConfigRecord({"notes": [json.dumps(NOTE)] * 2})
    with pytest.raises(ModuleError, match="different modules"):
        parcels_of(content)
    content[PARCELS] = ConfigRecord({"notes": "none"})
    with pytest.raises(ModuleError, match="no list of notes"):
        parcels_of(content)


def test_a_device_says_what_it_has_trained() -> None:
    update = ModularUpdate(STATE, {A: 3.0, B: 0.5})
    content = sent(RecordDict({TRAINED: trained_record(update)}))
    assert masses(content, TRAINED) == update.mass
    assert weigh(content).bytes == 0


def test_a_plan_travels_with_the_devices_keys() -> None:
    content = sent(RecordDict({PLAN: plan_record('{"kind":"relay"}', (A, B))}))
    assert plan_of(content) == ('{"kind":"relay"}', (A, B))
    assert plan_of(sent(RecordDict({PLAN: plan_record("x", ())}))) == ("x", ())
    assert plan_of(RecordDict({"config": ConfigRecord({"t": 1})})) is None


@pytest.mark.parametrize("words", [{"plan": "x"}, {"keys": "adapter/a"}, {"plan": 3, "keys": ""}])
def test_half_a_plan_is_refused(words: dict[str, str | int]) -> None:
    with pytest.raises(ProtocolError, match="needs the texts plan and keys"):
        plan_of(RecordDict({PLAN: ConfigRecord(dict(words))}))
