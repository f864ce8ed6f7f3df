from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from hffm_flower.errors import Interrupted, ProtocolError, QuorumError
from hffm_flower.modules import ModularState, ModuleKey, digest, shapes
from hffm_flower.profile import NodeProfile
from hffm_flower.records import CONFIG, MODULES, modules_record, text
from hffm_flower.tasks import definition, definitions
from strategies.grids import ClusterGrid
from strategies.registration import Registered, initial_modules, register, wait_for_nodes
from tests.support.memory import KEYS, A, Device, H, MemoryGrid, P, module, same

VERSION, SETTINGS = "0.1 (protocol 1)", {"seed": 1, "rounds": 3}
START: ModularState = {A: module(1, 2), H: module(3), P: module(4)}


def answers(
    index: int,
    keys: tuple[ModuleKey, ...] = KEYS,
    *,
    state: ModularState = START,
    change: Callable[[dict[str, Any]], object] = lambda raw: None,
) -> Device:
    """A device that answers both queries; ``change`` edits its profile."""

    def device(message: Message) -> Message:
        if message.metadata.message_type == "query.profile":
            raw: dict[str, Any] = {
                "version": VERSION, "settings": SETTINGS, "index": index,
                "modalities": ["image"], "tasks": {"watch7": 5}, "wanted": ["watch7"],
                "tests": {"watch7": 2}, "layout": shapes({k: state[k] for k in keys}),
            }  # fmt: skip
            change(raw)
            record = ConfigRecord({"json": json.dumps(raw)})
            return Message(RecordDict({"profile": record}), reply_to=message)
        send, digests = (
            [ModuleKey.parse(k) for k in text(message.content, CONFIG, name).split()]
            for name in ("send", "digest")
        )
        assert set(send) | set(digests) <= set(keys), "asked for what it does not hold"
        made = json.dumps({str(k): digest(state[k]) for k in digests})
        content = RecordDict(
            {
                MODULES: modules_record({k: state[k] for k in send}),
                "digests": ConfigRecord({"json": made}),
            }
        )
        return Message(content, reply_to=message)

    return device


def enlist(devices: dict[int, Device]) -> tuple[dict[int, Registered], dict[int, str]]:
    grid = ClusterGrid(MemoryGrid(devices), list(devices), poll_s=0.001)
    return register(grid, list(devices), version=VERSION, settings=SETTINGS, deadline_s=0.05)


def begin(
    devices: dict[int, Device], wanted: tuple[ModuleKey, ...] = KEYS
) -> tuple[dict[ModuleKey, Any], MemoryGrid]:
    accepted, refused = enlist(devices)
    assert refused == {}
    under = MemoryGrid(devices)
    grid = ClusterGrid(under, list(devices), poll_s=0.001)
    modules, left_out = initial_modules(grid, accepted, wanted, deadline_s=0.05)
    assert left_out == {}
    return modules, under


def test_devices_are_accepted_in_order_of_their_index() -> None:
    accepted, refused = enlist({7: answers(1, (A,)), 8: answers(0)})
    assert refused == {}
    assert list(accepted) == [8, 7]
    assert accepted[7].profile == NodeProfile(
        1, ("image",), {"watch7": 5}, wanted=("watch7",), tests={"watch7": 2}
    )
    assert (accepted[7].keys, accepted[8].keys) == ((A,), KEYS)


def edit(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda raw: raw.update(values)


@pytest.mark.parametrize(
    ("device", "why"),
    [
        (
            answers(1, change=edit(version="0.0 (protocol 0)")),
            f"device 1: its version 0.0 (protocol 0), here {VERSION}",
        ),
        (
            answers(1, change=edit(settings={"seed": 2, "rounds": 3})),
            "device 1: its seed 2, here 1",
        ),
        (answers(1, change=lambda raw: raw.pop("version")), "its version None, here"),
        (answers(0, (A,)), "device index 0 is taken by another node"),
        (
            answers(1, (A, H), state={A: module(1, 2, 3), H: module(1)}),
            "device 1: adapter/a/w is float32[3], but float32[2] on device 0",
        ),
        (
            answers(
                1, change=edit(definitions={"watch7": {**definition("watch7"), "head": "box"}})
            ),
            "device 1: its head of task 'watch7': 'box', here 'classification'",
        ),
        (
            answers(1, change=edit(definitions={"smell3": {}})),
            "device 1: task 'smell3' is not known here",
        ),
        (answers(1, change=edit(definitions=["watch7"])), "profile"),
        (answers(1, change=edit(skipped={"watch7": "many"})), "profile"),
        (lambda m: Message(Error(2, "raised"), reply_to=m), "no profile: error 2: raised"),
        (lambda m: None, "no answer within 0.05 s"),
        (lambda m: Message(RecordDict(), reply_to=m), "no text profile.json"),
        (answers(1, change=lambda raw: raw.pop("index")), "profile"),
        (answers(1, change=edit(tasks=["watch7"])), "profile"),
        (answers(1, change=edit(index=math.inf)), "profile"),
        (answers(1, change=edit(rank=math.inf)), "inf is no rank"),
        (answers(1, change=edit(ranks={"adapter/a": -5})), "-5 is no rank; allowed: 1 to 1024"),
        (answers(1, change=edit(experts=[1.7])), "1.7 is no expert; allowed: 0 to 1024"),
        (answers(1, change=edit(layout={"robot/x/w": "float32[1]"})), "profile"),
        (
            lambda m: Message(RecordDict({"profile": ConfigRecord({"json": "{"})}), reply_to=m),
            "profile",
        ),
    ],
)
def test_a_node_that_differs_is_refused_with_the_difference(device: Device, why: str) -> None:
    accepted, refused = enlist({5: answers(0), 6: device, 7: answers(2, (A,))})
    assert list(accepted) == [5, 7]
    assert list(refused) == [6]
    assert why in refused[6]


def test_what_a_device_does_not_use_of_its_data_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = {"watch7": {"unknown answer": 3}}
    same_tasks = definitions(["watch7"])
    accepted, refused = enlist(
        {5: answers(0), 6: answers(1, change=edit(skipped=told, definitions=same_tasks))}
    )
    assert refused == {}
    assert (accepted[5].skipped, accepted[6].skipped) == ({}, told)
    assert [r.message for r in caplog.records] == [
        "device 1 does not use of its own data: {'watch7': {'unknown answer': 3}}"
    ]


def test_nodes_are_waited_for() -> None:
    class Growing(MemoryGrid):
        def get_node_ids(self) -> list[int]:
            self.devices[len(self.devices) + 1] = answers(0)
            return list(self.devices)[::-1]

    nodes = wait_for_nodes(Growing({}), 3, least=1, deadline_s=5, stopped=lambda: False)
    assert nodes == (1, 2, 3)


def test_nodes_that_never_come_end_the_run_by_the_deadline() -> None:
    began = time.monotonic()
    one = MemoryGrid({4: answers(0)})
    with pytest.raises(QuorumError, match=r"1 of 3 nodes were online after 0\.1 s"):
        wait_for_nodes(one, 3, least=2, deadline_s=0.1, stopped=bool)
    assert time.monotonic() - began >= 0.1
    assert wait_for_nodes(one, 3, least=1, deadline_s=0.1, stopped=bool) == (4,)


def test_a_stop_ends_the_wait_for_nodes() -> None:
    with pytest.raises(Interrupted, match="stopped on request"):
        wait_for_nodes(MemoryGrid({}), 1, least=1, deadline_s=60, stopped=lambda: True)


def test_each_module_comes_from_its_lowest_holder_and_the_others_give_digests() -> None:
    got, under = begin({5: answers(2), 6: answers(0, (H,)), 7: answers(1, (A, H))})
    assert list(got) == list(KEYS)
    assert all(same(got[k], START[k]) for k in KEYS)
    words = {
        m.metadata.dst_node_id: (text(m.content, CONFIG, "send"), text(m.content, CONFIG, "digest"))
        for m in under.sent
    }
    assert words == {
        6: ("head/h", ""),
        7: ("adapter/a", "head/h"),
        5: ("prompt/p", "adapter/a head/h"),
    }


def test_only_what_is_shared_is_asked_for() -> None:
    got, under = begin({5: answers(0, (A, H)), 6: answers(1, (H,))}, wanted=(A,))
    assert list(got) == [A]
    assert [m.metadata.dst_node_id for m in under.sent] == [5]
    got, under = begin({5: answers(0)}, wanted=())
    assert got == {}
    assert under.sent == []


def test_other_bits_end_the_run_and_name_device_and_module() -> None:
    other = {**START, H: module(3.0000002)}
    assert not same(other[H], START[H])
    with pytest.raises(ProtocolError) as caught:
        begin({5: answers(0), 6: answers(1, state=other)})
    assert str(caught.value).startswith("device 1 begins with other bits in head/h; all devices")


def initial(
    device: Device, good: Device | None = None
) -> tuple[dict[ModuleKey, Any], dict[int, str]]:
    """What comes of a device that registers well, then answers ``query.init`` by ``device``."""
    accepted, _ = enlist({5: answers(0), 6: answers(1)})
    under = MemoryGrid({5: good or answers(0), 6: device})
    grid = ClusterGrid(under, [5, 6], poll_s=0.001)
    return initial_modules(grid, accepted, KEYS, deadline_s=0.05)


def digests(words: str) -> Device:
    record = ConfigRecord({"json": words})
    return lambda message: Message(RecordDict({"digests": record}), reply_to=message)


def test_a_holder_that_gives_nothing_is_left_out_and_the_next_gives() -> None:
    modules, left_out = initial(lambda m: None)
    assert list(modules) == list(KEYS)
    why = "device 1 gave no initial modules: error 3: no answer within 0.05 s"
    assert left_out == {6: why}
    modules, left_out = initial(answers(1), good=digests("{}"))
    assert all(same(modules[k], START[k]) for k in KEYS)
    assert left_out[5].startswith("device 0 gave no initial modules: adapter/a, head/h, prompt/p")


def test_a_module_of_another_shape_than_the_profile_says_is_not_taken() -> None:
    odd = answers(0, state={**START, H: {"w": np.zeros(7, np.float32)}})
    modules, left_out = initial(answers(1), good=odd)
    assert all(same(modules[k], START[k]) for k in KEYS)
    assert "head/h/w is missing or not as in its profile" in left_out[5]


def test_with_no_holder_left_a_module_is_not_there() -> None:
    modules, left_out = initial(lambda m: None, good=lambda m: None)
    assert modules == {}
    assert set(left_out) == {5, 6}


def test_a_holder_that_leaves_out_a_digest_is_not_believed() -> None:
    some = json.dumps({str(A): digest(START[A])})
    with pytest.raises(ProtocolError, match="device 1 begins with other bits in head/h, prom"):
        initial(digests(some))
    with pytest.raises(ProtocolError, match="device 1 begins with other bits in adapter/a"):
        initial(digests("[]"))


@pytest.mark.parametrize("words", ["{", "3", "[1]"])
def test_digests_that_are_none_leave_the_device_out(words: str) -> None:
    modules, left_out = initial(digests(words))
    assert list(modules) == list(KEYS)
    assert left_out[6].startswith("device 1 gave no initial modules: its digests cannot be read")
