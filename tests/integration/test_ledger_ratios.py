"""What D2D and a longer period save, exactly, from the ledgers of whole runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from clients.resident import all_profiles
from hffm_flower.config import RunConfig
from hffm_flower.d2d import HEADS
from hffm_flower.ledger import LinkClass, Phase, Transfer
from hffm_flower.models.parts import module_keys
from hffm_flower.modules import ModuleKey
from hffm_flower.records import read_state
from hffm_flower.tree import plant
from hffm_flower.wireless.network import Network
from hffm_flower.wireless.pricing import price
from tests.support.exchange import PLANS, coordinates
from tests.support.played import play
from tests.support.tiny import spec_of
from tests.support.transport import (
    ledger,
    size,
    tensors,
)


def held_by(config: RunConfig) -> dict[int, set[ModuleKey]]:
    spec = spec_of(config)
    return {p.index: set(module_keys(p.tasks, p.modalities, spec)) for p in all_profiles(config)}


@pytest.mark.parametrize(("edges", "head"), [(1, "latency"), (2, "energy"), (2, "battery")])
def test_the_uplink_carries_every_module_once_for_each_cluster(
    tiny: RunConfig, tmp_path: Path, edges: int, head: str
) -> None:
    config = tiny.with_values(tree__edges=edges, radio__links="tree", rounds=2, d2d__head=head)
    (idle,) = (p.index for p in all_profiles(config) if p.idle)
    links = plant(config.with_values(d2d__plan="relay")).topology.links
    assert sum(idle in link for link in links) > 1, "without it its cluster falls apart"
    plain = play(config, tmp_path / "plain")
    run = play(config.with_values(d2d__plan="relay"), tmp_path / "out")
    held, sizes = held_by(config), {k: size({k: s}) for k, s in run.files.cloud().items()}
    alone = sum(sizes[k] for keys in held.values() for k in keys)
    groups = plant(config).topology.clusters
    together = sum(sizes[k] for group in groups for k in set().union(*(held[d] for d in group)))
    assert alone > together > 0
    for before, after in zip(plain.rounds, run.rounds, strict=True):
        uplink = before.bytes_over("uplink"), after.bytes_over("uplink")
        assert uplink == (alone, together)
        assert after.bytes_over("downlink") == together
        assert after.bytes_over("backhaul") == before.bytes_over("backhaul")


def test_four_equal_devices_need_a_quarter_of_the_uplink(tiny: RunConfig, tmp_path: Path) -> None:
    config = tiny.with_values(
        tree__devices=4, tree__edges=1, data__min_tasks=3, data__full_modality_share=1.0,
        radio__reach=1e6, rounds=1,
    )  # fmt: skip
    assert len({frozenset(keys) for keys in held_by(config).values()}) == 1
    runs = [play(config.with_values(d2d__plan=p), tmp_path / p) for p in ("none", *PLANS)]
    none, *others = (tensors(ledger(run), LinkClass.UPLINK) for run in runs)
    assert [4 * up for up in others] == [none] * 3


SCHEDULES: Mapping[str, Callable[[ModuleKey], int]] = {
    "": lambda key: 2,
    "head/*=cloud:1 adapter/*=cloud:3 prompt/*=cloud:6": lambda key: {
        "head": 1, "adapter": 3, "prompt": 6
    }.get(key.kind, 2),
}  # fmt: skip


@pytest.mark.parametrize("policy", SCHEDULES)
def test_the_backhaul_carries_a_module_once_in_its_period(
    tiny: RunConfig, tmp_path: Path, policy: str
) -> None:
    config = tiny.with_values(rounds=6, server__evaluate_every=6)
    often = play(config.with_values(tree__period=1), tmp_path / "often")
    rare = play(config.with_values(tree__period=2, server__modules=policy), tmp_path / "rare")
    carried = []
    for run in (often, rare):
        rows = [r for r in ledger(run) if r.phase in (Phase.DISPATCH, Phase.COLLECT, Phase.PUBLISH)]
        assert {r.link for r in rows} == {LinkClass.BACKHAUL}
        count = Counter(name for row in rows for name in row.modules)
        sizes = {str(k): size({k: s}) for k, s in run.files.cloud().items()}
        assert all(row.bytes == sum(sizes[name] for name in row.modules) for row in rows)
        total = sum(sizes[name] * times for name, times in count.items())
        assert tensors(ledger(run), LinkClass.BACKHAUL) == total
        assert run.result["summary"]["bytes"]["backhaul"] == total
        carried.append(count)
    assert carried[0].keys() == carried[1].keys()
    for name, times in carried[0].items():
        assert times == carried[1][name] * SCHEDULES[policy](ModuleKey.parse(name)), name


def exchanged_j(rows: Iterable[Transfer], network: Network) -> float:
    """By hand: bits over rate, times what sender and receiver draw [J]."""
    block, radio = network.block(1), network.radio
    return sum(
        8 * (r.bytes + r.header_bytes) / block.rate_bit_s(r.src, r.dst)
        * (radio.tx_power_w + radio.rx_power_w)
        for r in rows
    )  # fmt: skip


def test_summing_costs_the_trees_edges_and_forwarding_the_paths(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HEADS, "first", lambda candidates: candidates[0])
    chain = [(100.0 * k, 0.0, 0) for k in range(4)]
    config = tiny.with_values(
        method="edge-only", rounds=1, tree__devices=4, tree__edges=1, data__min_tasks=3,
        data__full_modality_share=1.0, d2d__plan="relay", d2d__head="first",
        radio__coordinates=str(coordinates(tmp_path / "chain.csv", chain, [(0.0, 10.0)])),
        radio__links="tree",
    )  # fmt: skip
    held = set().union(*held_by(config).values())
    exchanged: dict[bool, dict[tuple[str, str], int]] = {}
    joules: dict[bool, float] = {}
    for summing in (True, False):
        run = play(config.with_values(d2d__summing=summing), tmp_path / str(summing))
        rows = [r for r in run.files.transfers()[1] if r.phase is Phase.EXCHANGE]
        network = plant(run.config)
        exchanged[summing] = {(r.src[-1], r.dst[-1]): r.bytes for r in rows}
        cost = price(rows, network.block(1), {})
        joules[summing] = cost.energy_by_link_j[LinkClass.D2D]
        assert joules[summing] == pytest.approx(exchanged_j(rows, network), rel=1e-9)
        up = [r.bytes for r in run.files.transfers()[1] if r.phase is Phase.UP and r.bytes]
        exchanged[summing]["0", "edge"] = sum(up)
        sizes = {k: size({k: s}) for k, s in read_state(run.files.edge(0)).items()}
    one = sum(sizes[k] for k in held)
    # 1 + 1 + 1 models over three links; from each device its path's length: 3 + 2 + 1.
    assert exchanged[True] == dict.fromkeys(
        [("3", "2"), ("2", "1"), ("1", "0"), ("0", "edge")], one
    )
    assert exchanged[False] == {
        ("3", "2"): one, ("2", "1"): 2 * one, ("1", "0"): 3 * one, ("0", "edge"): 4 * one,
    }  # fmt: skip
    assert 1.3 < joules[False] / joules[True] < 3.0
    print(f"bytes x {6 / 3:g}, joules x {joules[False] / joules[True]:.2f}")
