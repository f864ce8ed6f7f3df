from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from safetensors.numpy import save

from hffm_flower import records
from hffm_flower.errors import ModuleError, ProtocolError
from hffm_flower.modules import ModularState, digest
from hffm_flower.records import failure_of
from tests.support.memory import A, H, become_server, module, numbered

STATE: ModularState = {
    H: module(1, 2),
    A: {
        "up": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "scale": np.array(3, np.float32),
        "none": np.zeros((0, 4), np.float32),
        "layer.0.down": np.array([[np.pi]], np.float32),
    },
}


def digests(state: ModularState) -> dict[str, str]:
    return {str(k): digest(s) for k, s in state.items()}


TRACED = """<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'\x1b[36mray::A.run()\x1b[39m
  File "a.py", line 3, in run
    raise ValueError("no")
  File "b.py", line 4, in b
hffm_flower.errors.ConfigError: the weights are not finite'>"""


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("no answer within 5 s", "no answer within 5 s"),
        ("two\n lines", "two lines"),
        ("", ""),
        (TRACED, "hffm_flower.errors.ConfigError: the weights are not finite"),
    ],
)
def test_a_failure_is_told_by_its_cause(reason: str, said: str) -> None:
    become_server()
    question = numbered(Message(RecordDict(), dst_node_id=1, message_type="train"))
    assert failure_of(Message(Error(2, reason), reply_to=question)) == f"error 2: {said}"


def test_what_is_packed_is_read_back_bit_by_bit() -> None:
    content = RecordDict({records.MODULES: records.modules_record(STATE)})
    assert digests(records.modules_of(content)) == digests(STATE)
    assert digests(records.from_bytes(records.to_bytes(STATE))) == digests(STATE)


def test_the_same_state_has_the_same_bytes_in_any_order() -> None:
    turned = {k: dict(reversed(list(STATE[k].items()))) for k in reversed(list(STATE))}
    assert records.to_bytes(turned) == records.to_bytes(STATE)


def test_a_message_has_one_array() -> None:
    content = RecordDict({records.MODULES: records.modules_record(STATE)})
    (array,) = content.array_records[records.MODULES].values()
    assert (array.dtype, list(array.shape)) == ("uint8", [len(records.to_bytes(STATE))])
    # Flower wraps the bytes in a numpy header, of one block.
    assert 0 <= len(array.data) - len(records.to_bytes(STATE)) <= 128


def test_a_message_without_modules() -> None:
    assert records.modules_of(RecordDict()) == {}
    empty = RecordDict({records.MODULES: records.modules_record({})})
    assert records.modules_of(empty) == {}
    update = records.update_of(RecordDict())
    assert (dict(update.state), dict(update.mass)) == ({}, {})


def array_of(data: bytes) -> Array:
    return Array(np.frombuffer(data, dtype=np.uint8))


def typed(dtype: str, size: int) -> bytes:
    """A safetensors file of a type that numpy does not have."""
    about = {"adapter/a/w": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}
    header = json.dumps(about).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


BROKEN = {
    "junk": array_of(b"junk"),
    "cut": array_of(records.to_bytes(STATE)[:-3]),
    "name": array_of(save({"weight": np.zeros(2, np.float32)})),
    "kind": array_of(save({"robot/x/w": np.zeros(2, np.float32)})),
    "no numpy": Array(dtype="uint8", shape=(3,), stype="numpy.ndarray", data=b"abc"),
    "no serial": Array(dtype="uint8", shape=(3,), stype="pickle", data=b"abc"),
    "bf16": array_of(typed("BF16", 2)),
    "f8": array_of(typed("F8_E4M3", 1)),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_bytes_that_are_no_modules_are_refused(broken: str) -> None:
    content = RecordDict({records.MODULES: ArrayRecord({records.MODULES: BROKEN[broken]})})
    with pytest.raises(ModuleError):
        records.modules_of(content)


def test_more_than_one_array_is_refused() -> None:
    data = array_of(records.to_bytes(STATE))
    for names in (["modules", "more"], ["other"], []):
        content = RecordDict({records.MODULES: ArrayRecord(dict.fromkeys(names, data))})
        with pytest.raises(ModuleError, match="one array is expected"):
            records.modules_of(content)


def test_an_update_is_modules_and_masses() -> None:
    content = RecordDict(
        {
            records.MODULES: records.modules_record(STATE),
            records.MASS: records.mass_record({A: 3, H: 0.5}),
        }
    )
    update = records.update_of(content)
    assert digests(update.state) == digests(STATE)
    assert update.mass == {A: 3.0, H: 0.5}


@pytest.mark.parametrize(
    ("mass", "said"),
    [
        ({"adapter/a": 1.0}, "different modules: head/h"),
        ({"adapter/a": 1.0, "head/h": 1.0, "head/x": 1.0}, "different modules: head/x"),
        ({"adapter/a": 1.0, "head/h": -1.0}, "head/h=-1.0"),
        ({"adapter/a": 1.0, "head/h": float("nan")}, "head/h=nan"),
        ({"adapter/a": 1.0, "head/h": [1.0]}, "mass of head/h is a list"),
        ({"adapter/a": 1.0, "robot": 1.0}, "'robot' is not of the form"),
    ],
)
def test_masses_that_do_not_fit_the_modules_are_refused(
    mass: dict[str, float | list[float]], said: str
) -> None:
    content = RecordDict(
        {
            records.MODULES: records.modules_record(STATE),
            records.MASS: MetricRecord({**mass}),
        }
    )
    with pytest.raises(ModuleError, match=said):
        records.update_of(content)


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "edges" / "0.safetensors"
    records.write_state(path, STATE)
    assert digests(records.read_state(path)) == digests(STATE)
    records.write_state(path, {H: module(5)})
    assert digests(records.read_state(path)) == digests({H: module(5)})
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModuleError, match=r"0\.safetensors: not a safetensors file"):
        records.read_state(path)


def test_words_of_a_message() -> None:
    content = RecordDict({"config": ConfigRecord({"t": 3, "send": "a b", "loss": 0.5})})
    assert records.number(content, "config", "t") == 3
    assert records.text(content, "config", "send") == "a b"
    for record, name in (("config", "nothing"), ("nothing", "t"), ("config", "loss")):
        with pytest.raises(ProtocolError, match=f"no whole number {record}.{name}"):
            records.number(content, record, name)
        with pytest.raises(ProtocolError, match=f"no text {record}.{name}"):
            records.text(content, record, name)


def test_a_file_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        records.write_state(tmp_path / "a.safetensors", STATE)
    assert list(tmp_path.iterdir()) == []
