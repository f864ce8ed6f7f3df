"""The ledger of whole runs: what it says was sent is what was sent, byte by byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hffm_flower.config import RunConfig
from hffm_flower.d2d import EDGE, Played
from hffm_flower.d2d import play as play_plan
from hffm_flower.d2d.play import Sent
from hffm_flower.ledger import LinkClass, Phase, traffic
from hffm_flower.payload import bytes_by_kind
from hffm_flower.records import modules_of
from hffm_flower.tree import plant
from hffm_flower.wireless.pricing import price
from strategies import peer_grid
from tests.support.exchange import PLANS, watch_plans
from tests.support.played import play
from tests.support.transport import (
    Watch,
    ledger,
    size,
    sums,
    watch_cloud,
    watch_edges,
)


def by_round(sums: Mapping[tuple[int, Phase], int]) -> dict[int, int]:
    """Bytes of each round, whatever they were for."""
    return {t: sum(n for (u, _), n in sums.items() if u == t) for t, _ in sums}


@pytest.mark.parametrize("method", ["local", "edge-only", "h-fedfm"])
def test_without_d2d_the_ledger_holds_what_the_devices_got_and_said(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    cloud = watch_cloud(monkeypatch)
    run = play(tiny.with_values(method=method, rounds=3, tree__period=2), tmp_path / "out")
    seen = Watch()
    calls = run.app.calls
    seen.asked(c.question for c in calls)
    seen.answered([c.question for c in calls], [c.reply for c in calls])
    rows = ledger(run)
    air = sums(rows, LinkClass.UPLINK, LinkClass.DOWNLINK)
    assert by_round(air) == by_round(seen.sums)
    assert by_round(sums(rows, LinkClass.BACKHAUL)) == by_round(cloud.sums)
    assert sums(rows, LinkClass.D2D) == {}
    wire = {phase for _, phase in sums(rows, LinkClass.BACKHAUL)}
    free = {Phase.SETUP, Phase.EVALUATE}
    if method == "local":  # nothing is shared: all that passes reports
        assert {phase for _, phase in air} <= free
    else:
        assert air == seen.sums
    assert (wire <= free) == (method != "h-fedfm")
    held = {c.index: modules_of(c.reply.content) for c in run.app.of("train")}
    for row in rows:
        if row.phase is Phase.UP:
            own = held[int(row.src.removeprefix("device/"))]
            assert row.bytes == size(own)
            assert row.modules == tuple(sorted(map(str, own)))
            assert row.sizes == tuple(size({k: own[k]}) for k in sorted(own))


@pytest.mark.parametrize("plan", PLANS)
def test_with_d2d_the_ledger_holds_what_edges_and_peers_sent(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    edges, cloud, plans = (
        watch_edges(monkeypatch),
        watch_cloud(monkeypatch),
        watch_plans(monkeypatch),
    )
    peers: dict[tuple[str, str], int] = Counter()

    def spy(*args: Any, tell: Callable[[Sent], None], **kwargs: Any) -> Played:
        def count(sent: Sent) -> None:
            pair = (f"device/{sent.src}", f"device/{sent.dst}")
            peers[pair] += sum(size(parcel.update.state) for parcel in sent.parcels)
            tell(sent)

        return play_plan(*args, tell=count, **kwargs)

    monkeypatch.setattr(peer_grid, "play", spy)
    run = play(tiny.with_values(d2d__plan=plan, radio__links="tree", rounds=2), tmp_path / "out")
    rows = ledger(run)
    air = sums((r for r in rows if r.t > 0), LinkClass.UPLINK, LinkClass.DOWNLINK)
    assert air == edges.sums
    assert sums(rows, LinkClass.BACKHAUL) == cloud.sums
    assert {r.phase for r in rows if r.link is LinkClass.D2D} == {Phase.SHARE, Phase.EXCHANGE}
    entered: dict[tuple[str, str], int] = Counter()
    for row in rows:
        if row.phase is Phase.EXCHANGE:
            entered[row.src, row.dst] += row.bytes
            assert row.header_bytes > 0
    assert entered == peers
    # What devices hand on to each other before they train is what the plans say.
    sizes = {k: size({k: s}) for k, s in run.files.cloud().items()}
    for t, made in plans.items():
        hops = {(f"device/{h.src}", f"device/{h.dst}"): h
                for p in made for h in p.down if h.src != EDGE}  # fmt: skip
        shared = [r for r in rows if r.t == t and r.phase is Phase.SHARE]
        assert {(r.src, r.dst) for r in shared} == hops.keys()
        for row in shared:
            assert row.bytes == sum(sizes[k] for k in hops[row.src, row.dst].keys)
        # All that an edge sends itself goes to whom the plans name.
        down = [r for r in rows if r.t == t and r.phase is Phase.DOWN]
        direct = sum(sizes[k] for p in made for h in p.down if h.src == EDGE for k in h.keys)
        assert sum(r.bytes for r in down) == direct


@pytest.mark.parametrize(
    ("method", "plan"),
    [("star", "none"), ("h-fedfm", "none"), ("h-fedfm", "relay"), ("edge-only", "cooperative")],
)
def test_reports_and_summary_say_what_the_ledger_costs(
    tiny: RunConfig, tmp_path: Path, method: str, plan: str
) -> None:
    config = tiny.with_values(method=method, d2d__plan=plan, rounds=3)
    run = play(config, tmp_path / "out")
    found, network = run.files.transfers(), plant(config)
    assert sorted(found) == [0, 1, 2, 3]
    assert {row.phase for row in found[0]} == {Phase.SETUP}
    for report in run.rounds:
        rows = found[report.t]
        cost = price(rows, network.block(report.t), {int(d): f for d, f in report.work.items()})
        assert (report.latency_s, report.energy_j) == (cost.latency_s, cost.energy_j)
        assert 0 < report.latency_s < float("inf")
        assert report.kinds == bytes_by_kind(rows)
        assert sum(report.kinds.values()) == sum(n for n, _ in report.traffic.values()) > 0
        assert report.traffic == {link: list(both) for link, both in traffic(rows).items()}
        assert sorted(map(int, report.work)) == [1, 2, 3, 4, 5]
        # Measuring is entered, and free.
        charged = [r for r in rows if r.phase not in (Phase.SETUP, Phase.EVALUATE)]
        assert (
            price(charged, network.block(report.t), {int(d): f for d, f in report.work.items()})
            == cost
        )
        assert traffic(charged) == traffic(rows)
    evaluated = {t for t, rows in found.items() if any(r.phase is Phase.EVALUATE for r in rows)}
    assert evaluated == {r.t for r in run.rounds if r.scores}
    summary = run.result["summary"]
    rounds = run.rounds
    assert summary["latency_s"] == pytest.approx(sum(r.latency_s for r in rounds) / 3, rel=1e-12)
    assert summary["energy_j"] == pytest.approx(sum(r.energy_j for r in rounds) / 3, rel=1e-12)
    both = traffic(ledger(run))
    assert summary["bytes"] == {link: both[link][0] for link in LinkClass}
    assert summary["kind_bytes"] == bytes_by_kind(ledger(run))
    assert sum(summary["kind_bytes"].values()) == sum(summary["bytes"].values())
    assert summary["header_bytes"] == {link: both[link][1] for link in LinkClass}


def test_a_stars_messages_go_over_the_air_and_over_the_wire(
    tiny: RunConfig, tmp_path: Path
) -> None:
    run = play(tiny.with_values(method="star"), tmp_path / "out")
    edge_of = plant(run.config).topology.edge_of()
    for t, rows in run.files.transfers().items():
        for phase in {row.phase for row in rows}:
            hops = [Counter((r.src, r.dst, r.bytes, r.header_bytes) for r in rows
                            if r.phase is phase and (r.link is LinkClass.BACKHAUL) == wire)
                    for wire in (False, True)]  # fmt: skip
            assert sum(hops[0].values()) == sum(hops[1].values()) > 0
            through: Counter[tuple[str | int, ...]] = Counter()
            for (src, dst, *sizes), times in hops[0].items():
                up = src.startswith("device/")
                device, edge = (src, dst) if up else (dst, src)
                assert edge == f"edge/{edge_of[int(device.removeprefix('device/'))]}"
                through[(edge, "cloud", *sizes) if up else ("cloud", edge, *sizes)] += times
            assert through == hops[1]
        if t:
            assert run.rounds[t - 1].bytes_over("backhaul") == run.rounds[t - 1].bytes_over(
                "uplink"
            ) + run.rounds[t - 1].bytes_over("downlink")
