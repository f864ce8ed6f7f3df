"""The whole system, real ServerApp function and real ClientApp, over an in-process grid."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from clients.resident import all_profiles
from clients.store import DeviceStore
from hffm_flower.config import RunConfig
from hffm_flower.errors import Interrupted
from hffm_flower.ledger import Phase
from hffm_flower.models.parts import module_keys
from hffm_flower.modules import ModularState, ModuleKey
from hffm_flower.records import modules_of, read_state, update_of
from hffm_flower.runfiles import RunFiles
from strategies import peer_grid
from strategies.server_app import app as server_app
from tests.support.fake_grid import FakeGrid
from tests.support.outcomes import bits, farthest, outcome
from tests.support.played import Played, RecordingApp, play
from tests.support.tiny import spec_of

IDLE = 0
SETTINGS = [
    pytest.param("local", 1, id="local"),
    pytest.param("star", 1, id="star"),
    pytest.param("edge-only", 1, id="edge-only"),
    pytest.param("h-fedfm", 2, id="h-fedfm-E2"),
    pytest.param("h-fedfm", 3, id="h-fedfm-E3"),
]
ADAPTER = ModuleKey.parse("adapter/tiny.0")
PROMPT = ModuleKey.parse("prompt/cls")
VQA = ModuleKey.parse("head/tiny-vqa")
PROJECTOR = ModuleKey.parse("projector/image")


def names(state: Iterable[ModuleKey]) -> set[str]:
    return {str(k) for k in state}


def edge(run: Played, index: int) -> ModularState:
    return read_state(run.files.edge(index))


@pytest.mark.parametrize(("method", "period"), SETTINGS)
def test_every_method_runs_to_its_end(
    tiny: RunConfig, tmp_path: Path, method: str, period: int
) -> None:
    config = tiny.with_values(method=method, tree__period=period, rounds=5)
    run = play(config, tmp_path / "out")
    assert run.error is None
    assert run.result["status"] == "finished"
    assert run.result["idle_devices"] == [IDLE]
    assert run.result["refused_nodes"] == {}
    assert [r.t for r in run.rounds] == [1, 2, 3, 4, 5]
    assert all(r.devices == [1, 2, 3, 4, 5] and not r.dropped for r in run.rounds)
    assert run.rounds[-1].loss_sum < run.rounds[0].loss_sum
    highest = {"local": "device", "edge-only": "edge"}.get(method, "cloud")
    assert run.result["summary"]["tier"] == highest
    assert run.result["summary"]["uncovered"] == 0.0
    assert run.result["summary"]["mean_global"] > 0.45  # chance is 0.375
    # The cloud evaluates exactly after its own aggregations.
    due = {
        "local": set[int](), "star": {1, 2, 3, 4, 5}, "edge-only": set[int](),
        "h-fedfm": {t for t in range(1, 6) if t % period == 0 or t == 5},
    }[method]  # fmt: skip
    assert {r.t for r in run.rounds if "cloud" in r.scores} == due
    assert {r.t for r in run.rounds if r.bytes_over("backhaul") > 1000} == due
    # Each IID test example is counted once per evaluation.
    for report in run.rounds:
        for splits in report.scores.values():
            assert {t: s.total for t, s in splits["iid"].items()} == {
                "tiny-vqa": 100, "tiny-move": 50, "tiny-box": 25,
            }  # fmt: skip
    edges = 1 if method == "star" else 2
    assert len(list((run.files.root / "edges").iterdir())) == edges
    assert [e["t"] for e in run.events if e["event"] == "round"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("method", "period"), SETTINGS)
def test_a_device_is_sent_what_its_profile_names_and_no_more(
    tiny: RunConfig, tmp_path: Path, method: str, period: int
) -> None:
    config = tiny.with_values(method=method, tree__period=period, rounds=2)
    run = play(config, tmp_path / "out")
    profiles = all_profiles(config)
    held = {p.index: set(module_keys(p.tasks, p.modalities, spec_of(config))) for p in profiles}
    assert len({frozenset(h) for h in held.values()}) >= 4
    for kind in ("train", "evaluate"):
        assert {c.index for c in run.app.of(kind)} == {1, 2, 3, 4, 5}
        for call in run.app.of(kind):
            expected = set() if method == "local" else held[call.index]
            assert modules_of(call.question.content).keys() == expected
    for call in run.app.of("train"):
        update = update_of(call.reply.content)
        assert update.state.keys() == (set() if method == "local" else held[call.index])
        assert all(mass > 0 for mass in update.mass.values())
    for call in run.app.of("evaluate"):
        assert not modules_of(call.reply.content)


def test_an_idle_device_is_asked_what_it_is_and_nothing_else(
    tiny: RunConfig, tmp_path: Path
) -> None:
    run = play(tiny, tmp_path / "out")
    assert [kind for index, kind in run.grid.log if index == IDLE] == ["query.profile"]
    assert [kind for index, kind in run.grid.log if index == 1].count("train") == 2


def test_device_modules_stay_on_the_device(tiny: RunConfig, tmp_path: Path) -> None:
    run = play(tiny.with_values(method="local", rounds=3), tmp_path / "out")
    assert not any(modules_of(m.content) for c in run.app.calls for m in (c.question, c.reply))
    assert run.files.cloud() == {}
    for profile in all_profiles(tiny):
        store = DeviceStore(Path(tiny.paths.state) / "1", profile.index)
        if profile.idle:
            assert store.versions() == []
            continue
        assert store.versions() == [2, 3]
        own = store.read(4)
        assert own.keys() == set(module_keys(profile.tasks, profile.modalities, spec_of(tiny)))
        assert bits(own) != bits(store.read(3))


def test_every_module_has_its_own_place(tiny: RunConfig, tmp_path: Path) -> None:
    policy = "head/*=device adapter/*=cloud:2 prompt/*=edge"
    config = tiny.with_values(rounds=4, tree__period=1, server__modules=policy)
    run = play(config, tmp_path / "out")
    assert run.error is None
    sent: dict[tuple[ModuleKey, int], set[bytes]] = defaultdict(set)
    for call in run.app.of("train"):
        assert not any(k.kind == "head" for k in modules_of(call.question.content))
        assert not any(k.kind == "head" for k in modules_of(call.reply.content))
        for key, state in modules_of(call.question.content).items():
            sent[key, call.t].add(bits({key: state}))
    # Both edges send what the cloud decided after the round before; else each its own.
    assert [len(sent[ADAPTER, t]) for t in (1, 2, 3, 4)] == [1, 2, 1, 2]
    assert [len(sent[PROJECTOR, t]) for t in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert [len(sent[PROMPT, t]) for t in (1, 2, 3, 4)] == [1, 2, 2, 2]
    assert VQA not in run.files.cloud()
    assert bits({ADAPTER: run.files.cloud()[ADAPTER]}) not in {
        bits({ADAPTER: edge(run, e)[ADAPTER]}) for e in (0, 1)
    }
    for index in (1, 2, 3, 4, 5):
        own = DeviceStore(Path(tiny.paths.state) / "1", index).read(5)
        assert {k.kind for k in own} == {"head"}


@pytest.mark.parametrize("fraction", [0.3, 0.5, 1.0])
def test_a_share_of_each_cluster_takes_part(
    tiny: RunConfig, tmp_path: Path, fraction: float
) -> None:
    config = tiny.with_values(server__fraction=fraction, rounds=6)
    run = play(config, tmp_path / "out")
    count = {0.3: (1, 1), 0.5: (1, 2), 1.0: (2, 3)}[fraction]  # of two and three live devices
    drawn = []
    for report in run.rounds:
        asked = sorted(c.index for c in run.app.of("train") if c.t == report.t)
        assert report.devices == asked
        assert (sum(k in (1, 2) for k in asked), sum(k in (3, 4, 5) for k in asked)) == count
        drawn.append(tuple(asked))
    assert (len(set(drawn)) == 1) == (fraction == 1.0)
    assert {k for round_ in drawn for k in round_} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("method", ["local", "star", "h-fedfm"])
def test_one_seed_gives_the_same_bits_another_gives_others(
    tiny: RunConfig, tmp_path: Path, method: str
) -> None:
    runs = [
        play(
            tiny.with_values(
                method=method, seed=seed, server__fraction=0.7,
                paths__state=str(tmp_path / f"state{n}"),
            ),
            tmp_path / f"out{n}",
        )
        for n, seed in enumerate((3, 3, 4))
    ]  # fmt: skip
    assert outcome(runs[0]) == outcome(runs[1])
    own = [
        {p.relative_to(tmp_path / f"state{n}"): p.read_bytes()
         for p in (tmp_path / f"state{n}").rglob("*.safetensors")}
        for n in range(3)
    ]  # fmt: skip
    assert own[0] == own[1]
    assert bool(own[0]) == (method == "local")
    other = outcome(runs[2])
    assert other["rounds"] != outcome(runs[0])["rounds"]
    if method != "local":
        assert other["model.safetensors"] != outcome(runs[0])["model.safetensors"]
    else:
        assert own[2] != own[0]


def test_a_tree_is_a_star_on_one_aggregation(tiny: RunConfig, tmp_path: Path) -> None:
    once = {
        m: play(tiny.with_values(method=m, rounds=1, tree__period=1), tmp_path / m)
        for m in ("star", "h-fedfm")
    }
    states = {m: run.files.cloud() for m, run in once.items()}
    assert farthest(states["star"], states["h-fedfm"]) <= 1e-6
    # The updates that went in were the same bits.
    replies = [
        {c.index: bits(modules_of(c.reply.content)) for c in run.app.of("train")}
        for run in once.values()
    ]
    assert replies[0] == replies[1]


def test_a_tree_is_as_good_as_a_star_over_a_run(tiny: RunConfig, tmp_path: Path) -> None:
    figures = [
        play(tiny.with_values(method=m, rounds=5, tree__period=1), tmp_path / m).result["summary"]
        for m in ("star", "h-fedfm")
    ]
    assert abs(figures[0]["mean_global"] - figures[1]["mean_global"]) <= 0.01
    for task, value in figures[0]["per_task"].items():
        assert abs(value - figures[1]["per_task"][task]) <= 0.01 + 1e-12


class LateGrid(FakeGrid):
    """Replies come backwards, in two lots."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        waiting = list(message_ids)
        return super().pull_messages(waiting[::-1][: -(-len(waiting) // 2)])


def test_the_order_of_replies_does_not_matter(tiny: RunConfig, tmp_path: Path) -> None:
    plain = play(tiny, tmp_path / "plain")
    late = play(tiny, tmp_path / "late", grid=LateGrid)
    assert outcome(plain) == outcome(late)


def test_what_the_devices_begin_a_round_with_is_what_the_round_before_left(
    tiny: RunConfig, tmp_path: Path
) -> None:
    run = play(tiny.with_values(method="star", rounds=4), tmp_path / "out")
    sent: dict[int, dict[ModuleKey, bytes]] = defaultdict(dict)
    for call in run.app.of("train"):
        for key, state in modules_of(call.question.content).items():
            assert sent[call.t].setdefault(key, bits({key: state})) == bits({key: state})
    for before, after in pairwise(sorted(sent)):
        assert sent[before].keys() == sent[after].keys()
        assert all(sent[before][k] != sent[after][k] for k in sent[before])
    last = {c.index: modules_of(c.question.content) for c in run.app.of("evaluate") if c.t == 4}
    cloud = run.files.cloud()
    assert all(bits({k: cloud[k]}) == bits({k: m[k]}) for m in last.values() for k in m)


def test_server_app_is_the_same_door(tiny: RunConfig, tmp_path: Path) -> None:
    direct = play(tiny, tmp_path / "direct")
    config = tiny.with_values(paths__out=str(tmp_path / "flower"))
    app = RecordingApp()
    grid = FakeGrid(app, config.tree.devices, config.to_flwr())
    context = Context(
        run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=dict(config.to_flwr())
    )
    server_app(grid, context)
    assert RunFiles(tmp_path / "flower").result()["status"] == "finished"
    assert bits(RunFiles(tmp_path / "flower").cloud()) == bits(direct.files.cloud())


def test_a_gossip_is_left_when_the_run_is_to_stop(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, entered = threading.Event(), peer_grid.PeerGrid.enter_peers

    def enter(self: peer_grid.PeerGrid, t: int, phase: Phase, *rest: Any) -> None:
        entered(self, t, phase, *rest)
        if phase is Phase.EXCHANGE:
            stop.set()

    monkeypatch.setattr(peer_grid.PeerGrid, "enter_peers", enter)
    config = tiny.with_values(d2d__plan="gossip", d2d__accuracy=1e-3)
    run = play(config, tmp_path / "out", stop=stop)
    assert isinstance(run.error, Interrupted)
    assert run.result["status"] == "interrupted"
    assert run.rounds == []
