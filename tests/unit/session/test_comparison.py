"""Tables and pictures of a comparison, from folders of runs that were made up."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hffm_flower.cli.compare import closing_tables
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError, HffmError, OutputError
from hffm_flower.ledger import LinkClass
from hffm_flower.modules import ModuleKind
from hffm_flower.report import RoundReport, Score, TaskFacts
from hffm_flower.result import build
from hffm_flower.runfiles import RunFiles
from hffm_flower.session import comparison
from hffm_flower.session.comparison import Planned, execute, prepare, table, write_tables
from hffm_flower.session.comparison_plots import draw_comparison
from hffm_flower.session.entries import entries
from hffm_flower.session.worker import Show

FACTS = {"tiny-vqa": TaskFacts(0.25, True, 100)}
METHODS = ("star", "edge-only", "edge-only+d2d", "central")
ROUNDS = 4
NAMES = tuple(map(str, LinkClass))


def write_run(run: Planned, correct: int, factor: float, *, status: str = "finished") -> None:
    """A run's record: ``correct`` of 100 in the end, costs ``factor`` times something."""
    files = run.files
    tier = "cloud" if run.entry.config.method in ("star", "central") else "edge"
    for t in range(1, ROUNDS + 1):
        report = RoundReport(t, loss_sum=4.0 / t, trained=2, devices=[0, 1])
        report.add_score(tier, "iid", "tiny-vqa", Score(correct - ROUNDS + t, 100, 0.0))
        report.latency_s, report.energy_j = factor * t, 2 * factor * t
        report.traffic = {name: [int(100 * factor) * (n + 1), n] for n, name in enumerate(NAMES)}
        if run.entry.config.method == "central":
            report.latency_s = report.energy_j = 0.0
            report.traffic = {}
        else:
            total = sum(n for n, _ in report.traffic.values())
            report.kinds = {"adapter": total - 7, "head": 7}
        files.append(report)
    files.write_result(build(run.entry.config, files.rounds(), FACTS, cycle=2, status=status))


@pytest.fixture
def base(tiny: RunConfig) -> RunConfig:
    return tiny.with_values(rounds=ROUNDS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def done(base: RunConfig, root: Path) -> list[Planned]:
    """Two seeds of each method; the second is worse by 10 points and twice as dear."""
    planned = prepare(entries(base, METHODS, [1, 2]), root)
    for run in planned:
        first = run.entry.config.seed == 1
        write_run(run, 80 if first else 70, 1.0 if first else 2.0)
    return planned


def test_every_run_has_its_folder(done: list[Planned], root: Path) -> None:
    assert [p.files.root for p in done] == [
        root / name / f"seed-{seed}" for seed in (1, 2) for name in METHODS
    ]


def test_a_row_is_a_mean_over_seeds_with_its_spread(done: list[Planned]) -> None:
    rows = {row["method"]: row for row in table(done)}
    assert list(rows) == list(METHODS)
    row = rows["edge-only+d2d"]
    assert row["accuracy"] == pytest.approx(0.75)
    assert row["accuracy_spread"] == pytest.approx(0.1 / 2**0.5)
    assert row["accuracy_cycle"] == pytest.approx(0.745)  # the mean of the last two rounds
    assert row["latency_s"] == pytest.approx((2.5 + 5.0) / 2)  # of an edge round
    assert row["latency_s_spread"] == pytest.approx(2.5 / 2**0.5)
    assert row["energy_j"] == pytest.approx(7.5)
    assert row["bytes"] == {name: 150.0 * (n + 1) for n, name in enumerate(NAMES)}
    assert list(row["kind_bytes"]) == list(ModuleKind)
    assert row["kind_bytes"]["head"] == 7.0
    assert sum(row["kind_bytes"].values()) == sum(row["bytes"].values()) == 1500.0
    assert row["header_bytes"] == {name: float(n) for n, name in enumerate(NAMES)}
    assert row["seeds"].keys() == {"1", "2"}
    assert row["seeds"]["2"]["latency_s"] == pytest.approx(5.0)
    assert row["seeds"]["1"]["bytes"]["uplink"] == 100.0


def test_answers_that_were_dropped_are_told(done: list[Planned]) -> None:
    clean = table(done)
    assert [row["dropped"] for row in clean] == [0] * len(METHODS)
    (figures, *_) = closing_tables(clean)
    assert "answers dropped" not in [column.header for column in figures.columns]
    lossy = done[1].files
    assert done[1].entry.name == "edge-only"
    report = RoundReport(ROUNDS + 1, dropped={"0": "gone", "3": "gone"})
    files = RunFiles.create(lossy.root.parent / "seed-9")
    for each in [*lossy.rounds(), report]:
        files.append(each)
    config = done[1].entry.config.with_values(rounds=ROUNDS + 1)
    files.write_result(build(config, files.rounds(), FACTS, cycle=2, status="finished"))
    rows = table([dataclasses.replace(done[1], files=files), *done[2:]])
    assert [row["dropped"] for row in rows[:2]] == [2, 0]
    (figures, *_) = closing_tables(rows)
    (lost,) = (c for c in figures.columns if c.header == "answers dropped")
    assert list(lost.cells)[:2] == ["2", "0"]


def test_central_has_no_price(done: list[Planned]) -> None:
    row = table(done)[-1]
    assert row["method"] == "central"
    assert row["accuracy"] == pytest.approx(0.75)
    assert [row[k] for k in ("latency_s", "latency_s_spread", "energy_j")] == [None] * 3
    assert set(row["bytes"].values()) == {0.0}


def test_one_seed_has_no_spread(done: list[Planned]) -> None:
    row = table(done[:1])[0]
    assert row["accuracy"] == pytest.approx(0.8)
    assert [row[f"{k}_spread"] for k in ("accuracy", "latency_s", "energy_j")] == [None] * 3


def test_the_tables_say_the_same(done: list[Planned], root: Path) -> None:
    rows = table(done)
    write_tables(root, rows, [p.entry for p in done])
    whole = json.loads((root / "table.json").read_text(encoding="utf-8"))
    assert whole["rows"] == rows
    assert whole["versions"]["hffm-flower"]
    # Settings in common, no paths and nothing that differs between the rows.
    assert whole["config"]["rounds"] == ROUNDS
    odd = {"method", "seed", "tree.period", "d2d.plan"}
    assert not odd & whole["config"].keys()
    assert not any(key.startswith("paths.") for key in whole["config"])
    with (root / "table.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == list(METHODS)
    for line, row in zip(lines, rows, strict=True):
        for name in ("accuracy", "accuracy_cycle", "latency_s", "energy_j"):
            for key in (name, f"{name}_spread"):
                assert line[key] == ("" if row[key] is None else str(row[key]))
        assert line["dropped"] == "0"
        for link in NAMES:
            assert float(line[f"{link}_bytes"]) == row["bytes"][link]
        for kind in ModuleKind:
            assert float(line[f"{kind}_bytes"]) == row["kind_bytes"][kind]
    assert sorted(p.name for p in root.iterdir() if p.is_file()) == [
        "run.log", "table.csv", "table.json", "table.tex",
    ]  # fmt: skip


def test_the_latex_table_is_whole(done: list[Planned], root: Path) -> None:
    write_tables(root, table(done), [p.entry for p in done])
    text = (root / "table.tex").read_text(encoding="utf-8")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].strip().splitlines()[1:]
    assert [line.split(" & ")[0] for line in body] == list(METHODS)
    columns = text[text.index("tabular}{") + 9 :].partition("}")[0]
    assert all(line.count(" & ") == len(columns) - 1 for line in body)
    assert all(line.endswith(r" \\") for line in body)
    assert r"$0.750 \pm 0.071$" in body[1]
    assert r"$3.75 \pm 1.77$" in body[1]
    assert body[-1].count("--") == 2


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


@pytest.mark.parametrize("names", [METHODS, ("central",), ("local", "h-fedfm-e2+gossip")])
def test_pictures_are_drawn(base: RunConfig, root: Path, names: Sequence[str]) -> None:
    planned = prepare(entries(base, names, [1, 2]), root)
    for run in planned:
        write_run(run, 60, 1.5)
    draw_comparison([(p.entry.name, p.files) for p in planned], table(planned), root)
    assert is_picture(root / "accuracy.png")
    assert is_picture(root / "costs.png")
    assert not list(root.glob("*.part*"))


def test_a_folder_is_taken_once(done: list[Planned], root: Path, base: RunConfig) -> None:
    with pytest.raises(OutputError, match="is not empty"):
        prepare(entries(base, ["local"], [9]), root)
    assert not (root / "local").exists()


def test_nothing_is_made_where_a_setting_cannot_work(base: RunConfig, root: Path) -> None:
    wrong = base.with_values(server__rule="median")
    with pytest.raises(ConfigError, match="'median' does not allow"):
        prepare(entries(wrong, ["star", "edge-only", "edge-only+d2d"], [1]), root)
    assert not root.exists()


Worker = Callable[[Sequence[RunConfig], Path, Show], None]


def worker_that(planned: Sequence[Planned], ends: int, error: BaseException | None) -> Worker:
    """Finishes the first ``ends`` runs, begins the next, then fails."""

    def work(configs: Sequence[RunConfig], root: Path, show: Show) -> None:
        for run in planned[:ends]:
            write_run(run, 60, 1.0)
        for run in planned[ends : ends + 1]:
            run.files.append(RoundReport(1, loss_sum=1.0, trained=1, devices=[1]))
        if error is not None:
            raise error

    return work


def statuses(planned: Sequence[Planned]) -> list[object]:
    return [p.files.result()["status"] for p in planned]


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), "interrupted"), (HffmError("out of memory"), "failed")],
)
def test_what_has_finished_is_kept(
    base: RunConfig, root: Path, monkeypatch: pytest.MonkeyPatch,
    error: BaseException, status: str,
) -> None:  # fmt: skip
    planned = prepare(entries(base, METHODS, [1]), root)
    monkeypatch.setattr(comparison, "work", worker_that(planned, 2, error))
    with pytest.raises(type(error)):
        execute(planned, root, lambda event: None)
    assert statuses(planned[:3]) == ["finished", "finished", status]
    assert not planned[3].files.root.exists(), "it was never begun"
    whole = json.loads((root / "table.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in whole["rows"]] == list(METHODS[:2])
    assert is_picture(root / "accuracy.png")
    reasons = {str(p.files.result()["reason"]) for p in planned[2:3]}
    assert reasons == {str(error) or "stopped on request"}


def test_nothing_finished_makes_no_table(
    base: RunConfig, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = prepare(entries(base, METHODS, [1]), root)
    monkeypatch.setattr(comparison, "work", worker_that(planned, 0, HffmError("no room")))
    with pytest.raises(HffmError, match="no room"):
        execute(planned, root, lambda event: None)
    assert statuses(planned[:1]) == ["failed"]
    assert not any(p.files.root.exists() for p in planned[1:])
    assert not (root / "table.json").exists()


def test_a_whole_comparison(base: RunConfig, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = prepare(entries(base, METHODS, [1]), root)
    monkeypatch.setattr(comparison, "work", worker_that(planned, 4, None))
    found = execute(planned, root, lambda event: None)
    rows: Sequence[Mapping[str, Any]] = found.rows
    assert [row["method"] for row in rows] == list(METHODS)
    assert found.folder == root
    assert all((p.files.root / "curves.png").exists() for p in planned)
