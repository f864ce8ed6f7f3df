"""Federations whose devices exchange their updates: what stays equal, and what stays at home."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clients.resident import all_profiles
from clients.store import DeviceStore
from hffm_flower.config import RunConfig
from hffm_flower.d2d import HEADS
from hffm_flower.modules import ModularState, ModuleKey
from hffm_flower.records import modules_of, read_state, to_bytes
from hffm_flower.schedule import METHODS
from tests.support.exchange import (
    PLANS,
    behind_of,
    check_near,
    coordinates,
    updates_of,
    watch_counts,
    watch_plans,
)
from tests.support.played import Played, play

ABLE = [name for name, method in METHODS.items() if not method.clusterless]
HEAD = ModuleKey.parse("head/tiny-vqa")


def edges(run: Played) -> list[ModularState]:
    assert run.error is None
    paths = sorted((run.files.root / "edges").iterdir(), key=lambda p: int(p.stem))
    return [read_state(p) for p in paths]


def farthest(a: ModularState, b: ModularState) -> float:
    """Largest difference, relative to the largest parameter."""
    assert a.keys() == b.keys()
    pairs = [(a[k][n], b[k][n]) for k in a for n in a[k]]
    largest = max(float(np.abs(x).max()) for x, _ in pairs)
    return max(float(np.abs(x - y).max()) for x, y in pairs) / largest


@pytest.fixture
def once(tiny: RunConfig) -> RunConfig:
    """One edge round, over trees of links that need several steps."""
    return tiny.with_values(method="edge-only", rounds=1, radio__links="tree")


@pytest.mark.parametrize("method", ABLE)
@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_runs_to_its_end(
    tiny: RunConfig, tmp_path: Path, plan: str, method: str
) -> None:
    config = tiny.with_values(method=method, d2d__plan=plan, rounds=3, tree__period=2)
    run = play(config, tmp_path / "out")
    assert run.error is None
    assert run.result["status"] == "finished"
    assert [r.devices for r in run.rounds] == [[1, 2, 3, 4, 5]] * 3
    assert not any(r.dropped or r.void for r in run.rounds)
    assert run.rounds[-1].loss_sum < run.rounds[0].loss_sum
    assert all(r.bytes_over("d2d") > 0 for r in run.rounds)
    assert run.result["summary"]["tier"] == ("edge" if method == "edge-only" else "cloud")
    assert run.result["summary"]["uncovered"] == 0.0
    assert run.result["summary"]["mean_global"] > 0.45  # chance is 0.375


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("summing", [True, False])
def test_relaying_once_is_averaging_once(
    once: RunConfig, tmp_path: Path, head: str, summing: bool
) -> None:
    plain = play(once, tmp_path / "plain")
    relayed = play(
        once.with_values(d2d__plan="relay", d2d__head=head, d2d__summing=summing),
        tmp_path / "relayed",
    )
    assert all(
        to_bytes(update.state) == to_bytes(updates_of(plain, 1)[device].state)
        for device, update in updates_of(relayed, 1).items()
    )
    for one, other in zip(edges(plain), edges(relayed), strict=True):
        assert farthest(one, other) <= 1e-6


@pytest.mark.parametrize("accuracy", [0.3, 1e-4])
def test_gossiping_once_is_averaging_once_within_the_accuracy(
    once: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accuracy: float
) -> None:
    counts = watch_counts(monkeypatch)
    config = once.with_values(tree__edges=1, d2d__plan="gossip", d2d__accuracy=accuracy)
    run = play(config, tmp_path / "out")
    assert run.error is None
    updates = updates_of(run, 1)
    (found,) = counts
    assert found.behind == behind_of(updates)
    check_near(found.modules, found.behind, updates, accuracy=accuracy)
    plain = edges(play(once.with_values(tree__edges=1), tmp_path / "plain"))[0]
    apart = farthest(found.modules, plain)
    assert 1e-6 < apart < 0.1 if accuracy == 0.3 else apart < 1e-3


def test_the_thinnest_share_of_a_gossip_counts(tiny: RunConfig, tmp_path: Path) -> None:
    """Far from one another on a line, with hardly a step between them: nobody is asked again."""
    line = [(40.0 * k, 0.0, 0) for k in range(20)]
    config = tiny.with_values(
        method="edge-only", rounds=1, tree__devices=20, tree__edges=1, data__min_tasks=3,
        data__full_modality_share=1.0, train__local_steps=1, d2d__plan="gossip",
        d2d__accuracy=0.87, radio__links="tree",
        radio__coordinates=str(coordinates(tmp_path / "line.csv", line, [(0.0, 5.0)])),
    )  # fmt: skip
    run = play(config, tmp_path / "out")
    assert run.error is None
    assert run.rounds[0].devices == list(range(20))
    assert run.rounds[0].dropped == {}
    assert not [row for row in run.files.transfers()[1] if row.phase in ("ask", "repair")]


def test_cooperative_training_counts_each_device_once(
    once: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = watch_counts(monkeypatch)
    config = once.with_values(d2d__plan="cooperative", d2d__segments=3)
    run = play(config, tmp_path / "out")
    assert run.error is None
    updates = updates_of(run, 1)
    asked = [(c.index, c.question.content.config_records["config"]["segment"])
             for c in run.app.of("train")]  # fmt: skip
    assert sorted(asked) == [(device, segment) for device in range(1, 6) for segment in range(3)]
    whole = play(once, tmp_path / "whole")
    for found in counts[:2]:
        own = {d: u for d, u in updates.items() if (d < 3) == (found.edge == 0)}
        assert found.behind == behind_of(own)
        check_near(found.modules, found.behind, own, accuracy=config.d2d.accuracy)
    # As many examples and operations as in one go, with other modules in between.
    (report,), (plain,) = run.rounds, whole.rounds
    assert {d: u.mass for d, u in updates.items()} == {
        d: u.mass for d, u in updates_of(whole, 1).items()
    }
    assert (report.trained, report.work) == (plain.trained, plain.work)
    assert report.loss_sum != plain.loss_sum


def test_a_median_of_forwarded_updates_is_the_median(once: RunConfig, tmp_path: Path) -> None:
    config = once.with_values(rounds=2, server__rule="median")
    plain = play(config, tmp_path / "plain")
    forwarded = play(
        config.with_values(d2d__plan="relay", d2d__summing=False), tmp_path / "forwarded"
    )
    assert [to_bytes(s) for s in edges(plain)] == [to_bytes(s) for s in edges(forwarded)]
    assert [r.scores for r in plain.rounds] == [r.scores for r in forwarded.rounds]
    mean = play(once.with_values(rounds=2), tmp_path / "mean")
    assert to_bytes(edges(mean)[1]) != to_bytes(edges(plain)[1])


@pytest.mark.parametrize("plan", PLANS)
def test_a_share_of_each_cluster_takes_part(
    once: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    made = watch_plans(monkeypatch)
    config = once.with_values(rounds=4, server__fraction=0.5, d2d__plan=plan)
    run = play(config, tmp_path / "out")
    assert run.error is None
    drawn = [r.devices for r in run.rounds]
    assert all((sum(k < 3 for k in asked), sum(k > 2 for k in asked)) == (1, 2) for asked in drawn)
    assert len(set(map(tuple, drawn))) > 1
    for t, asked in enumerate(drawn, start=1):
        assert sorted({c.index for c in run.app.of("train") if c.t == t}) == asked
        assert {d for p in made[t] for d in p.members()} == set(asked)
    assert not any(r.dropped for r in run.rounds)


@pytest.mark.parametrize("plan", PLANS)
def test_a_device_alone_in_its_cluster_has_nobody_to_talk_to(
    once: RunConfig, tmp_path: Path, plan: str
) -> None:
    """The same bits as without D2D, for cooperative training too; edge 0 has an idle device."""
    alone = once.with_values(tree__edges=6, rounds=2)
    plain = play(alone, tmp_path / "plain")
    run = play(alone.with_values(d2d__plan=plan), tmp_path / "out")
    assert run.rounds[0].bytes_over("d2d") == 0
    assert [r.loss_sum for r in run.rounds] == [r.loss_sum for r in plain.rounds]
    assert [to_bytes(s) for s in edges(run)] == [to_bytes(s) for s in edges(plain)]
    assert run.rounds[0].bytes_over("uplink") == plain.rounds[0].bytes_over("uplink") > 0


def test_a_file_of_coordinates_brings_its_own_clusters(once: RunConfig, tmp_path: Path) -> None:
    path = coordinates(
        tmp_path / "here.csv",
        [(0, 0, 1), (10, 0, 0), (500, 0, 1), (20, 0, 0), (510, 0, 1), (30, 0, 0)],
        [(0, 50), (500, 50)],
    )
    config = once.with_values(radio__coordinates=str(path), d2d__plan="relay")
    run = play(config, tmp_path / "out")
    assert run.error is None
    assert run.result["clusters"] == [[1, 3, 5], [0, 2, 4]]
    rows = run.files.transfers()[1]
    up = {(r.src, r.dst) for r in rows if r.link in ("uplink", "downlink")}
    home = {1: 0, 3: 0, 5: 0, 2: 1, 4: 1}
    assert {frozenset(pair) for pair in up} == {
        frozenset((f"device/{d}", f"edge/{e}")) for d, e in home.items()
    }
    peers = {tuple(int(a.split("/")[1]) for a in (r.src, r.dst)) for r in rows if r.link == "d2d"}
    assert peers
    # A line's tree joins neighbours only.
    assert peers <= {(1, 3), (3, 1), (3, 5), (5, 3), (2, 4), (4, 2)}


@pytest.mark.parametrize("plan", PLANS)
def test_one_seed_gives_the_same_bits(tiny: RunConfig, tmp_path: Path, plan: str) -> None:
    def outcome(name: str) -> dict[str, object]:
        config = tiny.with_values(
            d2d__plan=plan, d2d__head="battery", server__fraction=0.7,
            paths__state=str(tmp_path / f"state-{name}"),
        )  # fmt: skip
        run = play(config, tmp_path / name)
        assert run.error is None
        files = {str(p.relative_to(run.files.root)): p.read_bytes()
                 for p in sorted(run.files.root.rglob("*.safetensors"))}  # fmt: skip
        ledger = (run.files.root / "ledger.jsonl").read_text(encoding="utf-8")
        return {**files, "ledger": ledger, "summary": run.result["summary"]}

    assert outcome("a") == outcome("b")


@pytest.mark.parametrize("plan", PLANS)
def test_personal_modules_stay_out_of_the_exchange(
    once: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    made = watch_plans(monkeypatch)
    config = once.with_values(rounds=3, server__modules="head/*=device", d2d__plan=plan)
    run = play(config, tmp_path / "out")
    assert run.error is None
    assert not any(r.dropped for r in run.rounds)
    kinds = {k.kind for c in run.app.calls for m in (c.question, c.reply)
             for k in modules_of(m.content)}  # fmt: skip
    assert "head" not in kinds
    assert "adapter" in kinds
    named = {
        name for rows in run.files.transfers().values() for row in rows for name in row.modules
    }
    assert named
    assert not any(name.startswith("head/") for name in named)
    shared = {
        k for plans in made.values() for p in plans for keys in p.uploads.values() for k in keys
    }
    assert not any(k.kind == "head" for k in shared)
    for profile in all_profiles(config):
        store = DeviceStore(Path(config.paths.state) / "1", profile.index)
        assert store.versions() == ([] if profile.idle else [2, 3])
        if not profile.idle:
            assert {k.name for k in store.read(4)} == set(profile.tasks)
            assert to_bytes(store.read(4)) != to_bytes(store.read(3))


def test_a_personal_module_learns_as_much_in_segments(once: RunConfig, tmp_path: Path) -> None:
    """Alone, a device's own head ends a round in segments with the bits of a round in one go."""
    heads = []
    for plan in ("none", "cooperative"):
        config = once.with_values(
            rounds=2, tree__edges=6, server__modules="head/*=device", d2d__plan=plan,
            paths__state=str(tmp_path / f"state-{plan}"),
        )  # fmt: skip
        assert play(config, tmp_path / plan).error is None
        store = DeviceStore(Path(config.paths.state) / "1", 3)
        heads.append(to_bytes(store.read(3)))
    assert heads[0] == heads[1]


def test_a_row_with_d2d_is_as_good_as_its_twin(tiny: RunConfig, tmp_path: Path) -> None:
    config = tiny.with_values(rounds=4, tree__period=2)
    twin, *runs = (play(config.with_values(d2d__plan=p), tmp_path / p) for p in ("none", *PLANS))
    for plan, run in zip(PLANS, runs, strict=True):
        # Cooperative training averages inside of a round, so that its models are others.
        points, rel = (0.05, 0.1) if plan == "cooperative" else (0.01, 1e-3)
        for name in ("mean_global", "mean_global_cycle"):
            assert abs(twin.result["summary"][name] - run.result["summary"][name]) <= points
        losses = [[r.loss_sum / r.trained for r in x.rounds] for x in (twin, run)]
        assert losses[1] == pytest.approx(losses[0], rel=rel)
        # Computed, not copied.
        assert to_bytes(run.files.cloud()) != to_bytes(twin.files.cloud())
