"""Variants of a comparison: their file, their settings, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from hffm_flower.modules import ModuleKind
from hffm_flower.report import RoundReport, Score, TaskFacts
from hffm_flower.result import build
from hffm_flower.runfiles import RunFiles
from hffm_flower.session import comparison
from hffm_flower.session.comparison import Planned, compare, prepare, table
from hffm_flower.session.comparison_plots import OTHERS, draw_comparison
from hffm_flower.session.shared_grid import Answers, SessionGrid, twin_of
from hffm_flower.session.variants import Variants, read_variants, variant_entries
from strategies.federate import federate
from tests.support.fake_grid import FakeGrid
from tests.support.played import RecordingApp

BASE = RunConfig().with_values(rounds=8, tree__devices=8, tree__edges=2)
FILE = """
rounds = 8
[model]
weights = "random"
[variants.bottleneck]
[variants.lora-exact]
model.adapter = "lora"
model.lora-ranks = [4, 8, 16]
[variants."lora+relay"]
d2d.plan = "relay"
[variants."lora+relay".model]
adapter = "lora"
"""
TWO: Variants = {"bottleneck": {}, "lora": {"model.adapter": "lora", "model.lora-ranks": [1, 2]}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "variants.toml"


def test_a_file_is_common_settings_and_variants(path: Path) -> None:
    path.write_text(FILE, encoding="utf-8")
    file = read_variants(path)
    assert file.common == {"rounds": 8, "model.weights": "random"}
    assert file.variants == {
        "bottleneck": {},
        "lora-exact": {"model.adapter": "lora", "model.lora-ranks": [4, 8, 16]},
        "lora+relay": {"d2d.plan": "relay", "model.adapter": "lora"},
    }
    base = RunConfig.load(base=file.common)
    plain, exact, relay = variant_entries(base, file.variants, [1])
    assert plain.config == base
    assert exact.config == base.with_values(model__adapter="lora", model__lora_ranks="4 8 16")
    assert exact.variant == {"model.adapter": "lora", "model.lora-ranks": "4 8 16"}
    assert relay.config == base.with_values(model__adapter="lora", d2d__plan="relay")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rounds = 8", r"has no tables \[variants.<name>\]"),
        ("variants = 3", "has no tables"),
        ("[variants]", "has no tables"),
        ("[variants]\nlora = 8", "variants.lora: 8 is no table of settings"),
        ("[variants.a", "is not valid TOML"),
    ],
)
def test_a_file_without_variants_is_refused(path: Path, text: str, said: str) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        read_variants(path)


def test_a_file_that_is_not_there_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the config"):
        read_variants(path)


def test_every_variant_runs_with_every_seed_and_may_change_the_method() -> None:
    wanted: Variants = {
        "a": {"method": "star"},
        "b": {"tree.period": 4},
        "c": {"d2d.plan": "gossip"},
    }
    found = variant_entries(BASE, wanted, [1, 2])
    assert [(e.config.seed, e.name) for e in found] == [(s, n) for s in (1, 2) for n in "abc"]
    configs = [e.config for e in found[3:]]
    assert [c.method for c in configs] == ["star", "h-fedfm", "h-fedfm"]
    assert [c.tree.period for c in configs] == [2, 4, 2]
    assert [c.d2d.plan for c in configs] == ["none", "none", "gossip"]


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ({}, "no variant to compare"),
        ({"lora_exact": {}}, "variant 'lora_exact': a name is of letters, digits, - and"),
        ({"../up": {}}, "a name is of letters"),
        ({"": {}}, "a name is of letters"),
        ({"a": {"model.adaptor": "lora"}}, "variants.a: model.adaptor: unknown setting; did you"),
        ({"a": {"model.adapter": "laura"}}, "variants.a: model.adapter: 'laura' is not allowed"),
        ({"a": {}, "b": {"model.adapter-rank": 0}}, "variants.b: model.adapter-rank: 0 is not"),
        ({"a": {"method": "fedavg"}}, "variants.a: method: unknown method 'fedavg'"),
        ({"a": {"method": "star", "d2d.plan": "relay"}}, "variants.a: d2d.plan: .*needs clusters"),
        ({"a": {"tree.period": 3}}, "variants.a: 8 edge rounds are no multiple of the period 3"),
        ({"a": {"seed": 3}}, "variants.a: seed is in common to all variants"),
        ({"a": {"rounds": 3}}, "variants.a: rounds is in common"),
        ({"a": {"tree.devices": 3}}, "variants.a: tree.devices is in common"),
        ({"a": {"paths.out": "x"}}, "variants.a: paths.out is in common"),
        ({"a": {}, "b": {"tree.period": 2}}, "'a' and 'b' are the same variant"),
    ],
)
def test_variants_that_are_refused(variants: Variants, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        variant_entries(BASE, variants, [1])
    assert str(RunConfig().locate(caught.value)) == str(caught.value), "it says its place once"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"model.lora-ranks": [999], "model.adapter": "lora"}, "variants.bad: model.lora-ranks"),
        ({"server.rule": "mode"}, "variants.bad: server.rule: unknown"),
    ],
)
def test_a_bad_variant_is_refused_before_anything_starts(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    bad: dict[str, object], said: str,
) -> None:  # fmt: skip
    def refuse(*args: object) -> NoReturn:
        raise AssertionError("a process was started")

    monkeypatch.setattr(comparison, "work", refuse)
    with pytest.raises(ConfigError, match=said):
        compare(tiny, variants={**TWO, "bad": bad}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_methods_and_variants_exclude_each_other(tiny: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        compare(tiny, methods=["star"], variants=TWO, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_variants_are_trained_and_their_bytes_told_by_kind(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "out"

    def work(configs: Sequence[RunConfig], root: Path, show: object) -> None:
        answers = Answers()
        for place, config in enumerate(configs):
            grid = FakeGrid(RecordingApp(), config.tree.devices, config.to_flwr())
            view = SessionGrid(grid, place, twin=twin_of(config), until=9, answers=answers)
            federate(view, config, RunFiles(Path(config.paths.out)))

    monkeypatch.setattr(comparison, "work", work)
    rows = compare(tiny, variants=TWO, out=root).rows
    assert [row["method"] for row in rows] == ["bottleneck", "lora"]
    assert [row["settings"] for row in rows] == [
        {}, {"model.adapter": "lora", "model.lora-ranks": "1 2"},
    ]  # fmt: skip
    for row in rows:
        kinds = row["kind_bytes"]
        assert list(kinds) == list(ModuleKind)
        assert sum(kinds.values()) == pytest.approx(sum(row["bytes"].values()), rel=1e-12)
        assert {k for k, n in kinds.items() if n} == {"projector", "prompt", "adapter", "head"}
    one, other = (row["kind_bytes"] for row in rows)
    assert one["adapter"] != other["adapter"]
    assert one["head"] == other["head"]
    whole = json.loads((root / "table.json").read_text(encoding="utf-8"))
    assert whole["rows"] == list(rows)
    assert whole["config"]["method"] == "h-fedfm"
    assert not {"model.adapter", "model.lora-ranks", "seed"} & whole["config"].keys()
    with (root / "table.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["adapter_bytes"]) for line in lines] == [one["adapter"], other["adapter"]]


def made_up(run: Planned) -> None:
    files = run.files
    for t in (1, 2):
        report = RoundReport(t, latency_s=1.0, energy_j=2.0, traffic={"uplink": [9, 1]})
        report.add_score("cloud", "iid", "tiny-vqa", Score(50, 100, 50.0))
        report.kinds = {"head": 9}
        files.append(report)
    facts = {"tiny-vqa": TaskFacts(0.25, True, 100)}
    files.write_result(build(run.entry.config, files.rounds(), facts, cycle=1, status="finished"))


def test_pictures_of_a_dozen_variants(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "out"
    wanted = {f"rate-{k}": {"train.learning-rate": 0.01 * k} for k in range(1, 13)}
    planned = prepare(variant_entries(tiny, wanted, [1]), root)
    for run in planned:
        made_up(run)
    draw_comparison([(p.entry.name, p.files) for p in planned], table(planned), root)
    for name in ("accuracy.png", "costs.png"):
        assert (root / name).read_bytes().startswith(b"\x89PNG")
    assert len(set(OTHERS)) >= 7
