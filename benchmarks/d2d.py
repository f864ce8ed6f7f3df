"""What a cluster's exchange costs: the plans against each other, in bytes, seconds and joules.

Run: ``python -m benchmarks.d2d [DEVICES [CLUSTERS]]``. Ratios are medians over the clusters.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterable

import numpy as np

from hffm_flower.d2d import EDGE, Cluster, Parcel, Plan, PlanOptions, make_plan, play, uploads_of
from hffm_flower.ledger import LinkClass, Phase, Transfer, traffic
from hffm_flower.modules import ModularUpdate, ModuleKey
from hffm_flower.placement import Site, place
from hffm_flower.wireless.network import Block, Network
from hffm_flower.wireless.pricing import price
from hffm_flower.wireless.radio import Radio

KEYS = tuple(ModuleKey.parse(f"adapter/{i}") for i in range(4))
FLOATS = 50_000
INSTRUCTION, REPORT = 900, 300
"""What a run sends to every device, and hears from it, beside modules [byte]."""


def around(edge: int, members: Iterable[int]) -> list[Transfer]:
    """Instructions and reports."""
    rows = []
    for m in members:
        here, there = f"edge/{edge}", f"device/{m}"
        none: tuple[tuple[str, ...], tuple[int, ...]] = (), ()
        rows.append(Transfer(1, Phase.DOWN, 0, here, there, LinkClass.DOWNLINK, INSTRUCTION, *none))
        rows.append(Transfer(1, Phase.UP, 0, there, here, LinkClass.UPLINK, REPORT, *none))
    return rows


def exchange(plan: Plan, edge: int) -> list[Transfer]:
    """The transfers of a round by ``plan``: down, D2D, up."""
    members = sorted(plan.members() | set(plan.uploads))
    state = {k: {"w": np.zeros(FLOATS, np.float32)} for k in KEYS}
    rows = around(edge, members)

    def row(phase: Phase, step: int, src: str, dst: str, link: LinkClass, size: int) -> None:
        rows.append(Transfer(1, phase, step, src, dst, link, 0, ("adapter/all",), (size,)))

    for hop in plan.down:
        size = 4 * FLOATS * len(hop.keys)
        if hop.src == EDGE:
            row(Phase.DOWN, 0, f"edge/{edge}", f"device/{hop.dst}", LinkClass.DOWNLINK, size)
        else:
            ends = f"device/{hop.src}", f"device/{hop.dst}"
            row(Phase.SHARE, hop.step, *ends, LinkClass.D2D, size)
    played = play({m: ModularUpdate.of(state, 10.0) for m in members}, plan)
    for sent in played.sent:
        ends = f"device/{sent.src}", f"device/{sent.dst}"
        row(Phase.EXCHANGE, sent.step, *ends, LinkClass.D2D, _size(sent.parcels))
    for device, parcels in uploads_of(played, plan).items():
        up = f"device/{device}", f"edge/{edge}"
        row(Phase.UP, 0, *up, LinkClass.UPLINK, _size(parcels))
    return rows


def _size(parcels: tuple[Parcel, ...]) -> int:
    return sum(a.nbytes for p in parcels for s in p.update.state.values() for a in s.values())


def cluster_of(block: Block, members: tuple[int, ...]) -> Cluster:
    """All members take part and hold the same modules."""
    costs = block.costs(members)
    return Cluster(
        holds=dict.fromkeys(members, KEYS), sizes=dict.fromkeys(KEYS, 4 * FLOATS),
        link_s=costs.link_s, link_j=costs.link_j, uplink_s=costs.uplink_s,
        uplink_j=costs.uplink_j, downlink_s=costs.downlink_s, downlink_j=costs.downlink_j,
        battery_j=dict.fromkeys(members, 1.0), t=1, seed=1,
    )  # fmt: skip


def direct(block: Block, edge: int, members: tuple[int, ...]) -> list[Transfer]:
    """The round without D2D."""
    size = 4 * FLOATS * len(KEYS)
    here, rows = f"edge/{edge}", around(edge, members)
    for m in members:
        there = f"device/{m}"
        whole = ("adapter/all",), (size,)
        rows.append(Transfer(1, Phase.DOWN, 0, here, there, LinkClass.DOWNLINK, 0, *whole))
        rows.append(Transfer(1, Phase.UP, 0, there, here, LinkClass.UPLINK, 0, *whole))
    return rows


PLANS = {
    "relay, summing": ("relay", PlanOptions()),
    "relay, forwarding": ("relay", PlanOptions(summing=False)),
    "relay, head by energy": ("relay", PlanOptions(head="energy")),
    "gossip, 1e-1": ("gossip", PlanOptions(accuracy=0.1)),
    "gossip, 1e-3": ("gossip", PlanOptions(accuracy=1e-3)),
}


def main(devices: int = 40, clusters: int = 10) -> None:
    """Print bytes, seconds and joules of each plan over those of direct uploads."""
    layout = place("case-study", Site(devices=devices, edges=clusters), 1)
    network = Network.of(layout, Radio(), 1)
    block = network.block(1)
    print(f"{devices} devices, {clusters} clusters; ratio to no D2D (median over clusters)")
    print(f"{'plan':<24}{'plan ms':>8}{'uplink':>8}{'D2D':>8}{'seconds':>9}{'joules':>8}")
    summed: dict[str, tuple[float, ...]] = {}
    for name, (kind, options) in PLANS.items():
        ratios = []
        for edge, members in enumerate(layout.clusters):
            cluster = cluster_of(block, members)
            began = time.process_time()
            plan = make_plan(kind, cluster, options)
            spent_ms = 1e3 * (time.process_time() - began)
            rows, alone = exchange(plan, edge), direct(block, edge, members)
            cost, base = price(rows, block, {}), price(alone, block, {})
            moved, usual = traffic(rows), traffic(alone)
            up = usual[LinkClass.UPLINK][0]
            ratios.append((
                spent_ms, moved[LinkClass.UPLINK][0] / up, moved[LinkClass.D2D][0] / up,
                cost.latency_s / base.latency_s, cost.energy_j / base.energy_j,
            ))  # fmt: skip
        summed[name] = tuple(map(statistics.median, zip(*ratios, strict=True)))
        print(f"{name:<24}" + "{:8.2f}{:8.3f}{:8.2f}{:9.2f}{:8.2f}".format(*summed[name]))
    summing, forwarding = summed["relay, summing"], summed["relay, forwarding"]
    print("summing / forwarding: " + ", ".join(
        f"{what} {summing[i] / forwarding[i]:.2f}"
        for i, what in ((1, "uplink bytes"), (2, "D2D bytes"), (3, "seconds"), (4, "joules"))
    ))  # fmt: skip


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
