"""The ClientApp's four answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients.client_app import app
from clients.resident import Device
from clients.store import DeviceStore
from hffm_flower import __version__
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError, ModuleError, ProtocolError
from hffm_flower.modules import ModularState, ModuleKey, digest, shapes
from hffm_flower.records import modules_of, modules_record, to_bytes, update_of
from hffm_flower.tasks import definitions
from tests.support.fake_grid import FIRST_NODE, FakeGrid

DEVICE = 1


def context_of(config: RunConfig, node_config: dict[str, Any] | None = None) -> Context:
    FakeGrid(app, 1, {})  # sets the identity that messages carry
    known: dict[str, Any] = {"partition-id": DEVICE} if node_config is None else node_config
    return Context(
        run_id=1, node_id=FIRST_NODE, node_config=known,
        state=RecordDict(), run_config=dict(config.to_flwr()),
    )  # fmt: skip


def ask(
    config: RunConfig,
    kind: str,
    state: ModularState | None = None,
    *,
    node_config: dict[str, object] | None = None,
    **words: str | int,
) -> RecordDict:
    context = context_of(config, node_config)
    content = RecordDict({"config": ConfigRecord({**words})})
    if state is not None:
        content["modules"] = modules_record(state)
    message = Message(content, FIRST_NODE, kind, ttl=60.0, group_id="1")
    message.metadata.__dict__["_message_id"] = "1"
    return app(message, context).content


def initial(config: RunConfig) -> ModularState:
    return Device(config, DEVICE, torch.device("cpu")).model().state()


def test_profile(tiny: RunConfig) -> None:
    answer = json.loads(str(ask(tiny, "query.profile", t=0).config_records["profile"]["json"]))
    own = Device(tiny, DEVICE, torch.device("cpu")).profile
    assert answer == {
        "version": f"{__version__} (protocol 1)",
        "settings": json.loads(json.dumps(tiny.shared())),
        "index": DEVICE,
        "modalities": list(own.modalities),
        "tasks": dict(own.tasks),
        "wanted": list(own.wanted),
        "tests": dict(own.tests),
        "layout": shapes(initial(tiny)),
        "definitions": definitions(tiny.data.tasks),
        "skipped": {},
        "peer": "",
        "ranks": {},
        "rank": 0,
        "experts": [],
        "lent": 0,
    }


def test_profile_tells_other_settings_but_not_other_places(tiny: RunConfig) -> None:
    def settings(config: RunConfig) -> object:
        raw = ask(config, "query.profile", t=0).config_records["profile"]["json"]
        return json.loads(str(raw))["settings"]

    assert settings(tiny) == settings(tiny.with_values(paths__state="/elsewhere"))
    assert settings(tiny) != settings(tiny.with_values(train__batch_size=3))


def test_initial_modules_and_digests(tiny: RunConfig) -> None:
    own = initial(tiny)
    first, *others = own
    content = ask(tiny, "query.init", t=0, send=str(first), digest=" ".join(str(k) for k in others))
    assert to_bytes(modules_of(content)) == to_bytes({first: own[first]})
    told = json.loads(str(content.config_records["digests"]["json"]))
    assert told == {str(k): digest(own[k]) for k in others}


@pytest.mark.parametrize("field", ["send", "digest"])
def test_initial_modules_that_it_does_not_hold_are_refused(tiny: RunConfig, field: str) -> None:
    asked = "adapter/tiny.0 head/watch7"
    send, compare = (asked, "") if field == "send" else ("", asked)
    with pytest.raises(ProtocolError, match="this device does not hold head/watch7"):
        ask(tiny, "query.init", t=0, send=send, digest=compare)


def test_training_answers_what_got_a_gradient_and_its_mass(tiny: RunConfig) -> None:
    own = initial(tiny)
    content = ask(tiny, "train", own, t=1)
    update = update_of(content)
    profile = Device(tiny, DEVICE, torch.device("cpu")).profile
    assert update.state.keys() == own.keys()
    assert update.mass[ModuleKey.parse("adapter/tiny.0")] == sum(profile.tasks.values())
    for task, count in profile.tasks.items():
        assert update.mass[ModuleKey.parse(f"head/{task}")] == count
    assert all(digest(update.state[k]) != digest(own[k]) for k in own)
    metrics = content.metric_records["metrics"]
    assert metrics["examples"] == sum(profile.tasks.values())
    assert isinstance(metrics["loss"], float)
    assert metrics["loss"] > 0
    assert not list(Path(tiny.paths.state).rglob("*"))  # nothing of it is its own


def test_a_round_asked_for_twice_is_answered_with_the_same_bits(tiny: RunConfig) -> None:
    own = initial(tiny)
    shared = {k: s for k, s in own.items() if k.kind != "head"}  # heads are the device's own
    long = tiny.with_values(rounds=3)
    answers = [ask(long, "train", shared, t=t) for t in (1, 2, 2, 3)]
    bits = [to_bytes(modules_of(a)) for a in answers]
    assert bits[1] == bits[2]
    assert len(set(bits)) == 3
    for answer in answers:
        assert modules_of(answer).keys() == shared.keys() == update_of(answer).mass.keys()
    store = DeviceStore(Path(tiny.paths.state) / "1", DEVICE)
    assert store.versions() == [2, 3]
    assert store.read(4).keys() == own.keys() - shared.keys()


def test_evaluation_takes_the_modules_sent_and_its_own_of_this_round(tiny: RunConfig) -> None:
    own = initial(tiny)
    shared = {k: s for k, s in own.items() if k.kind != "head"}
    profile = Device(tiny, DEVICE, torch.device("cpu")).profile

    def counts(t: int) -> dict[str, list[float]]:
        scores = ask(tiny, "evaluate", shared, t=t).metric_records["scores"]
        return {name: cast(list[float], values) for name, values in scores.items()}

    untrained = counts(1)
    assert {n.partition("/")[0] for n in untrained} == {"iid", "skewed", "guess"}
    for task, total in profile.tests.items():
        right, seen, value = untrained[f"iid/{task}"]
        assert seen == total
        assert 0 <= right <= total
        assert 0 <= value <= total
    long = tiny.with_values(train__local_epochs=20)
    ask(long, "train", shared, t=2)
    assert counts(1) == untrained  # a version of t = 2 is not there yet at t = 1
    assert counts(2) != untrained


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_module_that_it_does_not_hold_is_refused(tiny: RunConfig, kind: str) -> None:
    own = initial(tiny)
    strange = {ModuleKey.parse("head/watch7"): own[ModuleKey.parse("head/tiny-vqa")]}
    with pytest.raises(ModuleError, match="this model has no head/watch7"):
        ask(tiny, kind, {**own, **strange}, t=1)


@pytest.mark.parametrize("node_config", [{}, {"partition-id": "1"}, {"num-partitions": 6}])
def test_a_node_that_does_not_know_which_device_it_is_says_so(
    tiny: RunConfig, node_config: dict[str, object]
) -> None:
    with pytest.raises(ProtocolError, match="--node-config partition-id=K"):
        ask(tiny, "query.profile", node_config=node_config, t=0)


def test_a_node_beyond_the_run_says_so(tiny: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"device index 6 is not in 0\.\.5"):
        ask(tiny, "query.profile", node_config={"partition-id": 6}, t=0)


def test_a_message_without_its_round_is_refused(tiny: RunConfig) -> None:
    with pytest.raises(ProtocolError, match=r"no whole number config\.t"):
        ask(tiny, "train", initial(tiny))


def test_threads_are_one_inside_and_as_before_outside(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[int] = []
    model = Device.model

    def noted(self: Device) -> object:
        inside.append(torch.get_num_threads())
        return model(self)

    monkeypatch.setattr(Device, "model", noted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ask(tiny, "query.profile", t=0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert inside == [1]
