"""Devices that play their plans over gRPC end where the simulation ends, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from hffm_flower.config import RunConfig
from hffm_flower.ledger import LinkClass, Transfer
from hffm_flower.pki import Party, Role
from hffm_flower.pki_folder import create
from hffm_flower.records import to_bytes
from hffm_flower.testbed.measure import read_timings
from hffm_flower.tree import plant
from tests.support.exchange import PLANS
from tests.support.live import Live
from tests.support.played import Played, play


@pytest.fixture
def eight(tiny: RunConfig) -> RunConfig:
    return tiny.with_values(
        method="h-fedfm", tree__devices=8, tree__edges=2, tree__period=2, rounds=2,
        train__local_steps=4, d2d__accuracy=0.1, radio__links="nearest", server__deadline_s=60.0,
    )  # fmt: skip


def test_it_is_the_same_under_tls(
    eight: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = eight.with_values(d2d__plan="relay", rounds=1)
    want = play(config, tmp_path / "simulated")
    create(tmp_path / "pki", [Party(f"device-{k}", Role.DEVICE, ("127.0.0.1",)) for k in range(8)])
    with Live(monkeypatch, certificates=tmp_path / "pki", timings=tmp_path) as runs:
        got = runs.play(elsewhere(config, tmp_path), tmp_path / "live")
    assert got.error is None
    assert rows(got, LinkClass.D2D) == rows(want, LinkClass.D2D)
    assert to_bytes(got.files.cloud()) == to_bytes(want.files.cloud())
    timed = read_timings(tmp_path, plant(config))
    sent = rows(got, LinkClass.D2D)
    assert sorted((m.src, m.dst, m.bytes) for m in timed) == sorted(
        (row.src, row.dst, row.bytes + row.header_bytes) for row in sent
    )
    assert all(0 <= m.waited_s <= m.measured_s < 20 for m in timed)


def elsewhere(config: RunConfig, folder: Path) -> RunConfig:
    """Devices of one run are not those of another."""
    return config.with_values(paths__state=str(folder / "live-state"))


def rows(run: Played, link: LinkClass) -> list[Transfer]:
    return [row for rows in run.files.transfers().values() for row in rows if row.link is link]


@pytest.mark.parametrize("plan", PLANS)
def test_it_is_the_simulation_to_the_bit(
    eight: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    config = eight.with_values(d2d__plan=plan)
    want = play(config, tmp_path / "simulated")
    assert want.error is None
    with Live(monkeypatch) as runs:
        got = runs.play(elsewhere(config, tmp_path), tmp_path / "live")
    assert got.error is None
    assert [r.dropped for r in got.rounds] == [{}, {}]
    for edge in (0, 1):
        assert got.files.edge(edge).read_bytes() == want.files.edge(edge).read_bytes()
    assert to_bytes(got.files.cloud()) == to_bytes(want.files.cloud())
    assert rows(want, LinkClass.D2D)
    assert rows(got, LinkClass.D2D) == rows(want, LinkClass.D2D)
    for link in (LinkClass.UPLINK, LinkClass.DOWNLINK):
        sizes = [[(r.phase, r.src, r.dst, r.bytes) for r in rows(run, link)] for run in (got, want)]
        assert sizes[0] == sizes[1]
