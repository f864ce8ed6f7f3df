"""What of an exchange is refused before a run, and how a cluster plans round by round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hffm_flower.config import RunConfig
from hffm_flower.d2d import EDGE, PlanOptions
from hffm_flower.errors import ConfigError
from hffm_flower.modules import ModularUpdate, ModuleKey
from hffm_flower.payload import own_upload
from hffm_flower.topology import Topology
from hffm_flower.wireless.network import Block, Network
from hffm_flower.wireless.radio import Radio
from strategies.planner import PeerPlanner, check_exchange

A, B = (ModuleKey.parse(text) for text in ("adapter/a", "head/b"))
SIZES = {A: 20_000, B: 1_000}


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"d2d__plan": "flood"}, "d2d.plan", "unknown plan 'flood'; allowed: none, relay"),
        ({"d2d__plan": "realy"}, "d2d.plan", "did you mean 'relay'"),
        (
            {"d2d__plan": "relay", "d2d__head": "tallest"},
            "d2d.head", "unknown head 'tallest'; allowed: latency, energy, battery",
        ),
        ({"server__rule": "mode"}, "server.rule", "unknown rule 'mode'; allowed: mean, median"),
        ({"d2d__plan": "gossip", "d2d__summing": False}, "d2d.summing", "always sums"),
        ({"d2d__plan": "cooperative", "d2d__summing": False}, "d2d.summing", "is for relay"),
        ({"d2d__plan": "relay", "server__rule": "median"}, "server.rule", "'median' does not"),
        ({"d2d__plan": "gossip", "server__rule": "median"}, "server.rule", "'median' does not"),
    ],
)  # fmt: skip
def test_exchanges_that_cannot_work(changes: dict[str, Any], key: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        check_exchange(RunConfig().with_values(**changes))
    assert error.value.key == key


@pytest.mark.parametrize("method", ["star", "local", "central"])
def test_methods_without_clusters_cannot_exchange(method: str) -> None:
    with pytest.raises(ConfigError, match=rf"needs clusters .*'{method}' has none.*edge-only"):
        RunConfig().with_values(method=method, d2d__plan="relay")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"server__rule": "median"},
        {"method": "star", "d2d__head": "energy"},
        {"d2d__plan": "gossip"},
        {"d2d__plan": "relay", "d2d__summing": False},
        {"d2d__plan": "relay", "d2d__summing": False, "server__rule": "median"},
        {"method": "edge-only", "d2d__plan": "cooperative", "d2d__head": "battery"},
    ],
)
def test_exchanges_that_can(changes: dict[str, Any]) -> None:
    check_exchange(RunConfig().with_values(**changes))


def network(count: int = 4, **radio: Any) -> Network:
    """Devices on a ring about their edge, all of whom hear each other."""
    angle = 2 * np.pi * np.arange(count) / count
    at_m = 100.0 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    links = tuple((a, b) for a in range(count) for b in range(a + 1, count))
    topology = Topology(at_m, np.zeros((1, 2)), (tuple(range(count)),), links)
    return Network(topology, Radio(**radio), seed=7)


HOLDS = dict.fromkeys(range(4), (A, B))


def planner(kind: str, *, head: str = "latency", **radio: Any) -> PeerPlanner:
    return PeerPlanner(kind, PlanOptions(head=head, accuracy=0.1), network(**radio), 7)


def test_a_round_is_planned_from_its_own_channel() -> None:
    relay = planner("relay")
    plans = [relay.plan(t, HOLDS, SIZES) for t in range(1, 9)]
    again = planner("relay")
    assert [again.plan(t, HOLDS, SIZES) for t in range(1, 9)] == plans
    assert len({str(plan) for plan in plans}) > 1
    assert len({next(iter(plan.uploads)) for plan in plans}) > 1
    assert all(plan.members() == set(HOLDS) for plan in plans)


@pytest.mark.parametrize("kind", ["relay", "gossip", "cooperative"])
def test_only_those_who_take_part_are_planned_for(kind: str) -> None:
    part = {1: (A,), 3: (A, B)}
    plan = planner(kind).plan(2, part, SIZES)
    assert plan.members() == {1, 3}
    assert {k for keys in plan.uploads.values() for k in keys} == {A, B}


@pytest.mark.parametrize("kind", ["relay", "gossip", "cooperative"])
def test_batteries_fall_by_what_is_sent_and_received(kind: str) -> None:
    own = planner(kind, battery_j=50.0)
    before = dict.fromkeys(HOLDS, 50.0)
    for t in (1, 2, 3):
        plan = own.plan(t, HOLDS, SIZES)
        spends = {i for step in plan.steps for i in step.sends} | plan.uploads.keys()
        spends |= {hop.dst for hop in plan.down} | {hop.src for hop in plan.down} - {EDGE}
        assert spends == set(HOLDS)
        assert all(own.battery_j[d] < before[d] for d in HOLDS)
        before = dict(own.battery_j)


def test_what_a_relay_spends_is_what_its_messages_cost() -> None:
    own = planner("relay", battery_j=50.0)
    plan = own.plan(1, HOLDS, SIZES)
    radio, costs = own.network.radio, own.network.block(1).costs(HOLDS)
    spent_j = dict.fromkeys(HOLDS, 0.0)
    bits = 8 * (SIZES[A] + SIZES[B])
    for hop in plan.down:
        into_s = costs.downlink_s[hop.dst] if hop.src == EDGE else costs.link_s[hop.src, hop.dst]
        spent_j[hop.dst] += radio.rx_power_w * into_s * bits
        if hop.src != EDGE:
            spent_j[hop.src] += radio.tx_power_w * into_s * bits
    for step in plan.steps:
        for i, out in step.sends.items():
            for j in out:
                spent_j[i] += radio.tx_power_w * costs.link_s[i, j] * bits
                spent_j[j] += radio.rx_power_w * costs.link_s[i, j] * bits
    (head,) = plan.uploads
    spent_j[head] += radio.tx_power_w * costs.uplink_s[head] * bits
    for device, joules in spent_j.items():
        assert 50.0 - own.battery_j[device] == pytest.approx(joules, rel=1e-9)


def test_batteries_make_the_head_go_round() -> None:
    rotating = planner("relay", head="battery", battery_j=50.0)
    heads = []
    for t in range(1, 13):
        before_j = {**dict.fromkeys(HOLDS, 50.0), **rotating.battery_j}
        (head,) = rotating.plan(t, HOLDS, SIZES).uploads
        assert before_j[head] == max(before_j.values())
        heads.append(head)
    assert set(heads) == set(HOLDS)


def test_a_battery_is_not_emptier_than_empty() -> None:
    own = planner("gossip", battery_j=1e-9)
    own.plan(1, HOLDS, SIZES)
    assert set(own.battery_j.values()) == {0.0}
    assert own.plan(2, HOLDS, SIZES).uploads


class Fading(Network):
    """A network in which nobody hears device 0."""

    def block(self, t: int) -> Block:
        real = super().block(t)
        gain = {pair: 0.0 if 0 in pair else g for pair, g in real.link_gain.items()}
        return Block(real.topology, real.radio, real.uplink_gain, gain)


@pytest.mark.parametrize("kind", ["relay", "gossip", "cooperative"])
def test_a_link_that_carries_nothing_is_left_out(kind: str) -> None:
    whole = network()
    deaf = Fading(whole.topology, whole.radio, whole.seed)
    plan = PeerPlanner(kind, PlanOptions(accuracy=0.1), deaf, 7).plan(1, HOLDS, SIZES)
    assert 0 in plan.uploads
    assert all(0 not in (i, j) for s in plan.steps for i, out in s.sends.items() for j in out)
    assert [hop.src for hop in plan.down if hop.dst == 0] == [EDGE]
    assert len(plan.uploads) == 2


def test_asked_directly_a_device_sends_what_it_has_trained_of_that() -> None:
    state = {k: {"w": np.ones(2, np.float32)} for k in (A, B)}
    update = ModularUpdate(state, {A: 3.0, B: 0.0})
    assert own_upload(update, [A, B]).mass == {A: 3.0}
    assert own_upload(update, [B, ModuleKey.parse("prompt/c")]).mass == {}
