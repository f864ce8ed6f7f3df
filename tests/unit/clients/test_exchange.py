"""The ClientApp among its peers: what it refuses, and what it answers when it is alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import nn

from clients import exchange
from clients.channels import close_channels
from clients.client_app import app
from clients.exchange import Clock
from clients.resident import Device
from hffm_flower.accelerator import choose_device
from hffm_flower.config import RunConfig
from hffm_flower.d2d import EDGE, Delivery, PeerStep, Plan, plan_to_json
from hffm_flower.errors import DivergedError, ProtocolError
from hffm_flower.modules import ModularState, ModuleKey, shapes
from hffm_flower.payload import (
    PLAN,
    TRAINED,
    Admission,
    is_lacking,
    parcels_of,
    plan_record,
    sent_of,
)
from hffm_flower.records import CONFIG, MODULES, masses, modules_of, modules_record, update_of
from hffm_flower.rpc.codec import Allowed
from hffm_flower.rpc.tickets import issue
from tests.support.deployment import free_port
from tests.support.fake_grid import FIRST_NODE, FakeGrid

ME, OTHER = 1, 2


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    close_channels()


def initial(config: RunConfig) -> ModularState:
    return Device(config, ME, choose_device("cpu")).model().state()


Record = ArrayRecord | MetricRecord | ConfigRecord


def admission(state: ModularState, *, index: int = ME, t: int = 1, here: str = "") -> Admission:
    addresses = {index: here or "127.0.0.1:1", OTHER + index: "127.0.0.1:1"}
    ticket = issue(bytes(32), addresses, run=1, t=t)[index]
    return Admission(ticket, Allowed(shapes(state), dict.fromkeys(addresses, 1e6)), 2.0, {})


def ask(config: RunConfig, kind: str, address: str = "", /, **records: Record) -> RecordDict:
    FakeGrid(app, 1, {})  # sets the identity that messages carry
    node: dict[str, str | int | float | bool] = {"partition-id": ME, "insecure": True}
    if address:
        node["peer-address"] = address
    context = Context(
        run_id=1, node_id=FIRST_NODE, node_config=node,
        state=RecordDict(), run_config=dict(config.to_flwr()),
    )  # fmt: skip
    message = Message(RecordDict(records), FIRST_NODE, kind, ttl=60.0, group_id="1")
    message.metadata.__dict__["_message_id"] = "1"
    return app(message, context).content


def alone(keys: tuple[ModuleKey, ...]) -> Plan:
    """A plan of one uploader that nobody sends anything."""
    return Plan("relay", (), (), {ME: keys}, {})


def train(
    config: RunConfig, plan: Plan, sent: ModularState, told: Admission | None, address: str = ""
) -> RecordDict:
    keys = tuple(initial(config))
    records: dict[str, Record] = {
        CONFIG: ConfigRecord({"t": 1}),
        MODULES: modules_record(sent),
        PLAN: plan_record(plan_to_json(plan), keys, told),
    }
    return ask(config, "train", address, **records)


def test_a_plan_without_a_ticket_is_an_error(tiny: RunConfig) -> None:
    state = initial(tiny)
    with pytest.raises(ProtocolError, match=r"no text d2d\.ticket"):
        train(tiny, alone(tuple(state)), state, None)


@pytest.mark.parametrize("wrong", [{"index": OTHER}, {"t": 2}])
def test_a_ticket_of_another_device_or_round_is_an_error(
    tiny: RunConfig, wrong: dict[str, Any]
) -> None:
    state = initial(tiny)
    with pytest.raises(ProtocolError, match="the ticket is not that of device 1 in edge round 1"):
        train(tiny, alone(tuple(state)), state, admission(state, **wrong))


def test_it_uploads_what_it_would_send_without_a_plan(tiny: RunConfig) -> None:
    state = initial(tiny)
    address = f"127.0.0.1:{free_port()}"
    records: dict[str, Record] = {CONFIG: ConfigRecord({"t": 1}), MODULES: modules_record(state)}
    plain = update_of(ask(tiny, "train", **records))
    content = train(tiny, alone(tuple(state)), state, admission(state, here=address), address)
    (parcel,) = parcels_of(content)
    assert parcel.intact
    assert same(parcel.update.state, plain.state)
    assert masses(content, TRAINED) == plain.mass
    assert sent_of(content, 1, ME) == ()
    for keys in (list(plain.state), list(plain.state)[:1]):
        words = json.dumps([str(k) for k in keys])
        record = ConfigRecord({"t": 1, "keys": words})
        kept = update_of(ask(tiny, "query.upload", **{CONFIG: record}))
        assert same(kept.state, {k: plain.state[k] for k in keys})
        assert kept.mass == {k: plain.mass[k] for k in keys}


def same(one: ModularState, other: ModularState) -> bool:
    return (
        bool(one)
        and one.keys() == other.keys()
        and all(one[k][n].tobytes() == other[k][n].tobytes() for k in one for n in one[k])
    )


def test_without_a_channel_it_trains_and_says_so(tiny: RunConfig) -> None:
    state = initial(tiny)
    content = train(tiny, alone(tuple(state)), state, admission(state))
    (parcel,) = parcels_of(content)
    assert not parcel.intact
    assert set(masses(content, TRAINED)) == set(state)


def test_a_dead_peer_costs_its_parcel_and_no_more(tiny: RunConfig) -> None:
    state, other = initial(tiny), OTHER + ME
    step = PeerStep({other: {ME: dict.fromkeys(state, 1.0)}, ME: {}})
    plan = Plan("relay", (), (step,), {ME: tuple(state)}, {})
    address = f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    content = train(tiny, plan, state, admission(state, here=address), address)
    assert time.monotonic() - began < 10.0
    (parcel,) = parcels_of(content)
    assert {d for who in parcel.behind.values() for d in who} == {ME}
    assert not parcel.intact


def test_who_is_brought_no_modules_trains_nothing(tiny: RunConfig) -> None:
    state, other = initial(tiny), OTHER + ME
    first, *rest = state
    hops = (Delivery(EDGE, other, tuple(state), 0), Delivery(other, ME, tuple(rest), 1))
    plan = Plan("relay", hops, (), {ME: tuple(state)}, {})
    address = f"127.0.0.1:{free_port()}"
    content = train(tiny, plan, {first: state[first]}, admission(state, here=address), address)
    assert is_lacking(content)
    assert masses(content, TRAINED) == {}
    assert parcels_of(content) == ()
    assert content.metric_records["metrics"]["examples"] == 0
    with pytest.raises(ProtocolError, match="no update of edge round 1 is kept here"):
        ask(tiny, "query.upload", **{CONFIG: ConfigRecord({"t": 1, "keys": "[]"})})


@pytest.mark.parametrize("keys", ["", "{", "3", "[3]"])
def test_an_upload_of_what_is_no_module_is_an_error(tiny: RunConfig, keys: str) -> None:
    with pytest.raises(ProtocolError, match="keys of modules cannot be read"):
        ask(tiny, "query.upload", **{CONFIG: ConfigRecord({"t": 1, "keys": keys})})


def test_modules_that_are_not_finite_go_nowhere(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = initial(tiny)
    monkeypatch.setattr(exchange, "train", lambda model, *a, **k: Broken(model))

    class Broken:
        def __init__(self, model: nn.Module) -> None:
            self.progress = None
            self.mass = dict.fromkeys(state, 1.0)
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.data.fill_(float("nan"))

    with pytest.raises(DivergedError, match="not finite after edge round 1"):
        train(tiny, alone(tuple(state)), state, admission(state))


def test_a_message_that_was_long_on_its_way_leaves_less_time() -> None:
    FakeGrid(app, 1, {})
    message = Message(RecordDict(), FIRST_NODE, "train", ttl=60.0)
    message.metadata.__dict__["_created_at"] = time.time() - 40.0
    clock = Clock.of(message, 60.0)
    assert clock.total_s == pytest.approx(20.0, abs=1.0)
    assert 14.0 < clock.left_s(0.8) <= 16.0
    assert Clock.of(message, 30.0).left_s(1.0) == 0.0


def test_the_profile_says_where_peers_reach_it(tiny: RunConfig) -> None:
    for address in ("", "10.0.0.3:9200"):
        content = ask(tiny, "query.profile", address, **{CONFIG: ConfigRecord({"t": 0})})
        told = json.loads(str(content.config_records["profile"]["json"]))
        assert told["peer"] == address
    assert modules_of(content) == {}
