"""Small D2D plans by hand, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest

from hffm_flower.d2d import (
    EDGE,
    Cluster,
    Delivery,
    PeerStep,
    PlanOptions,
    check_summable,
    make_plan,
    plan_from_json,
    plan_to_json,
    relay_modules,
)
from hffm_flower.d2d.trees import arborescence
from hffm_flower.errors import ConfigError, ModuleError
from hffm_flower.modules import ModuleKey
from hffm_flower.routes import Link

A, B = (ModuleKey.parse(text) for text in ("adapter/a", "head/b"))


def cluster(
    holds: Mapping[int, tuple[ModuleKey, ...]], links: Mapping[Link, float], **changed: Any
) -> Cluster:
    """Links of equal cost both ways; uplinks and downlinks of 1 s/bit and 1 J/bit."""
    both = {**links, **{(b, a): s for (a, b), s in links.items()}}
    one = dict.fromkeys(holds, 1.0)
    fields: dict[str, Any] = {
        "holds": holds,
        "sizes": {A: 10, B: 1},
        "link_s": both,
        "link_j": both,
        "uplink_s": one,
        "uplink_j": one,
        "downlink_s": one,
        "downlink_j": one,
        "battery_j": one,
    }
    return Cluster(**{**fields, **changed})


CHAIN = cluster(
    {0: (A,), 1: (B,), 2: (A, B), 3: ()},
    {(0, 1): 0.1, (1, 2): 0.1, (2, 3): 0.1},
    uplink_s={0: 0.1, 1: 1.0, 2: 1.0, 3: 1.0},
)


def test_relay_along_a_chain() -> None:
    plan = make_plan("relay", CHAIN, PlanOptions())
    plan.check(CHAIN)
    both = {A: 1.0, B: 1.0}
    # Device 3 holds nothing and is asked for nothing.
    assert plan.steps == (PeerStep({2: {1: both}}), PeerStep({1: {0: both}}))
    assert plan.uploads == {0: (A, B)}
    assert plan.groups == {}
    assert plan.down == (
        Delivery(EDGE, 0, (A, B), 0),
        Delivery(0, 1, (A, B), 1),
        Delivery(1, 2, (A, B), 2),
    )


def test_relay_delivers_only_what_is_lacking_below() -> None:
    partly = dataclasses.replace(CHAIN, has={1: (A,), 2: (B,), 0: (A,)})
    plan = make_plan("relay", partly, PlanOptions())
    plan.check(partly)
    assert plan.down == (
        Delivery(EDGE, 0, (B,), 0),
        Delivery(0, 1, (B,), 1),
        Delivery(1, 2, (A,), 2),
    )


def test_relay_has_one_head_per_component() -> None:
    parts = cluster({0: (A,), 1: (A,), 5: (B,), 7: ()}, {(0, 1): 0.5})
    plan = make_plan("relay", parts, PlanOptions())
    assert plan.uploads == {0: (A,), 5: (B,)}
    assert plan.steps == (PeerStep({1: {0: {A: 1.0}}}),)


def test_heads_differ_by_policy() -> None:
    star = {(0, 1): 0.2, (0, 2): 0.2}
    three = cluster(
        dict.fromkeys(range(3), (A,)),
        star,
        uplink_s={0: 1.0, 1: 0.5, 2: 2.0},
        uplink_j={0: 1.0, 1: 3.0, 2: 0.5},
        battery_j={0: 4.0, 1: 2.0, 2: 4.0},
    )

    def head(policy: str) -> list[int]:
        return list(make_plan("relay", three, PlanOptions(head=policy)).uploads)

    # Latency [per bit]: 0 hears 0.2 + 0.2; 1 and 2 hear 0.2 and then 0.2.
    assert head("latency") == [1]
    assert head("energy") == [2]
    assert head("battery") == [0]


def test_forwarding_may_choose_another_head() -> None:
    # 0.4 + 1 x 1.0 against 0.4 + 1 x 0.9 if summed; three models and 0.2 + 0.4 if forwarded.
    three = cluster(
        dict.fromkeys(range(3), (A,)),
        {(0, 1): 2.0, (0, 2): 2.0},
        uplink_s={0: 1.0, 1: 0.9, 2: 5.0},
    )
    assert list(make_plan("relay", three, PlanOptions()).uploads) == [1]
    assert list(make_plan("relay", three, PlanOptions(summing=False)).uploads) == [0]


def test_gossip_groups_and_uploaders() -> None:
    plan = make_plan("gossip", CHAIN, PlanOptions())
    plan.check(CHAIN)
    assert plan.groups == {A: ((0,), (2,)), B: ((1, 2),)}
    assert plan.steps == (PeerStep({1: {2: {B: 0.5}}, 2: {1: {B: 0.5}}}),)
    # 2 uploads A in any case, so that it is asked for B as well, not 1.
    assert plan.uploads == {0: (A,), 2: (A, B)}
    assert (plan.kind, plan.segments, plan.summing) == ("gossip", 1, True)


def test_cooperative_uploaders_are_drawn_by_round() -> None:
    four = cluster(dict.fromkeys(range(4), (A, B)), {(0, 1): 1, (1, 2): 1, (2, 3): 1, (3, 0): 1})
    drawn = []
    for t in range(40):
        now = dataclasses.replace(four, t=t, seed=3)
        plan = make_plan("cooperative", now, PlanOptions(segments=3))
        assert plan.segments == 3
        (uploader,) = plan.uploads
        drawn.append(uploader)
        assert make_plan("cooperative", now, PlanOptions(segments=3)) == plan
    assert set(drawn) == {0, 1, 2, 3}
    assert plan.steps == make_plan("gossip", four, PlanOptions()).steps


def test_modules_come_from_neighbours_where_cheaper() -> None:
    four = cluster(
        {0: (A,), 1: (A,), 2: (A, B), 3: ()},
        {(0, 1): 0.5, (1, 2): 0.5, (2, 3): 0.1},
        downlink_s={0: 0.9, 1: 1.0, 2: 1.0, 3: 9.0},
        has={3: (B,)},
    )
    assert relay_modules(four) == (
        Delivery(EDGE, 0, (A,), 0),
        Delivery(3, 2, (B,), 0),
        Delivery(0, 1, (A,), 1),
        Delivery(1, 2, (A,), 2),
    )
    tie = cluster({0: (A,), 1: (A,)}, {(0, 1): 1.0})
    assert relay_modules(tie) == (Delivery(EDGE, 0, (A,), 0), Delivery(EDGE, 1, (A,), 0))
    assert relay_modules(dataclasses.replace(tie, has={0: (A,), 1: (A,)})) == ()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"link_s": {(0, 9): 1.0}, "link_j": {(0, 9): 1.0}}, "0->9 does not join two part"),
        ({"link_s": {(0, 0): 1.0}, "link_j": {(0, 0): 1.0}}, "0->0 does not join two part"),
        ({"link_s": {(0, 1): 1.0}, "link_j": {(0, 1): 1.0}}, "0->1 has no way back"),
        ({"link_j": {}}, "link_s and link_j differ"),
        ({"link_s": {(0, 1): -1.0, (1, 0): 1.0}}, "link_s of 0->1 is -1.0; a finite number"),
        ({"link_j": {(0, 1): 1.0, (1, 0): float("nan")}}, "link_j of 1->0 is nan"),
        ({"uplink_s": {0: 1.0}}, r"uplink_s and the participants \[0, 1\] differ in devices \[1\]"),
        ({"battery_j": {0: 1.0, 1: float("inf")}}, "battery_j of device 1 is inf"),
        ({"sizes": {A: 1}}, "device 1 holds modules without size: head/b"),
        ({"sizes": {A: 1, B: -1}}, "size of head/b is -1"),
        ({"has": {4: (A,)}}, r"'has' names unknown devices \[4\]"),
        ({"holds": {0: (A, A), 1: (B,)}}, "device 0 holds a module twice"),
        ({"holds": {-1: (A,), 1: (B,)}}, r"devices \[-1\] are not allowed"),
    ],
)
def test_clusters_that_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(cluster({0: (A,), 1: (B,)}, {(0, 1): 1.0}), **changed)


RELAY = make_plan("relay", CHAIN, PlanOptions())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": (PeerStep({0: {1: {A: 1.5}}}),)}, r"share 1.5 of adapter/a to 1; .*\(0, 1\]"),
        ({"steps": (PeerStep({0: {1: {A: -0.1}}}),)}, "share -0.1"),
        ({"steps": (PeerStep({0: {1: {A: 0.0}}}),)}, "share 0.0"),
        ({"steps": (PeerStep({1: {0: {A: 0.6}, 2: {A: 0.5}}}),)}, "device 1 sends 1.1 of its mass"),
        ({"steps": (PeerStep({0: {9: {A: 0.5}}}),)}, r"unknown devices \[9\]"),
        ({"steps": (PeerStep({0: {2: {A: 0.5}}}),)}, "no link 0->2"),
        ({"uploads": {9: (A,)}}, r"unknown devices \[9\]"),
        ({"groups": {A: ((8,),)}}, r"unknown devices \[8\]"),
        ({"segments": 0}, "0 segments"),
        ({"down": (Delivery(0, 1, (A,), 0),)}, "device 0 is to deliver adapter/a to 1 at step 0"),
        (
            {"down": (Delivery(EDGE, 0, (A,), 1), Delivery(0, 1, (A,), 1))},
            "has it not by then",
        ),
        ({"down": (Delivery(EDGE, EDGE, (A,), 0),)}, "a delivery to -1"),
        (
            {"down": (Delivery(EDGE, 0, (A,), 0), Delivery(0, 2, (A,), 1))},
            "no link 0->2",
        ),
    ],
)
def test_plans_that_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(RELAY, **changed).check(CHAIN)


def test_options_that_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown head policy 'latencies' \(did you mean 'lat"):
        PlanOptions(head="latencies")
    for bad in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="gossip accuracy"):
            PlanOptions(accuracy=bad)
    with pytest.raises(ConfigError, match="0 segments"):
        PlanOptions(segments=0)
    with pytest.raises(ConfigError, match=r"unknown D2D plan 'rely'.*relay, gossip, cooperative"):
        make_plan("rely", CHAIN, PlanOptions())
    with pytest.raises(ConfigError, match=r"'gossip' averages on the way.*plans that can: relay"):
        make_plan("gossip", CHAIN, PlanOptions(summing=False))


def test_rules_that_may_not_be_summed() -> None:
    check_summable("mean", True, "gossip", True)
    check_summable("median", False, "relay", False)
    for kind, summing in (("relay", True), ("gossip", True), ("gossip", False)):
        with pytest.raises(ConfigError, match=f"{kind!r} sums .* 'median' does not allow; allowed"):
            check_summable("median", False, kind, summing)
    with pytest.raises(ConfigError, match="unknown D2D plan 'x'"):
        check_summable("mean", True, "x", True)


def test_equal_steps_are_stored_once() -> None:
    line = cluster(dict.fromkeys(range(4), (A,)), {(0, 1): 1, (1, 2): 1, (2, 3): 1})
    plan = make_plan("gossip", line, PlanOptions(accuracy=1e-9))
    assert len(plan.steps) > 20
    fields = json.loads(plan_to_json(plan))
    assert [count for count, _ in fields["steps"]] == [len(plan.steps)]
    assert plan_from_json(plan_to_json(plan)) == plan


def changed_json(**changed: Any) -> str:
    return json.dumps({**json.loads(plan_to_json(RELAY)), **changed})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a D2D plan: JSONDecodeError"),
        ("[]", "not a D2D plan: TypeError"),
        ("{}", "not a D2D plan: KeyError: 'modules'"),
        (changed_json(uploads=[[0, [9]]]), "not a D2D plan: IndexError"),
        (changed_json(uploads=[[0, [-1]]]), "-1 is below 0"),
        (changed_json(uploads=[[-1, [0]]]), "-1 is below 0"),
        (changed_json(segments="2"), "'2' is no int"),
        (changed_json(summing=1), "1 is no bool"),
        (changed_json(steps=[[1, [[0, 1]]]]), "not a D2D plan: ValueError"),
        (changed_json(steps=[[1, [[0, 1, [[10**400, [0]]]]]]]), "not a D2D plan: OverflowError"),
        (changed_json(steps=[[10**9, []]]), "1000000000 steps; at most 1000000"),
        (changed_json(steps=[[1, [[0, 1, [[1.5, [0]]]]]]]), "share 1.5 of adapter/a to 1"),
        (changed_json(steps=[[1, [[0, 1, [[float("nan"), [0]]]]]]]), "share nan"),
    ],
)
def test_bad_json(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_from_json(text)


def test_json_with_a_bad_module() -> None:
    with pytest.raises(ModuleError, match="module key 'a/b' is not of the form"):
        plan_from_json(changed_json(modules=["a/b", "head/b"]))


def test_no_way_to_a_node() -> None:
    with pytest.raises(ConfigError, match=r"from the root to nodes \[2\]"):
        arborescence({(0, 1): 1.0, (2, 1): 1.0}, 0, [0, 1, 2])
