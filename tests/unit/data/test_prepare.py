"""Tasks from folders of the official formats: what is chosen, drawn, checked and written."""

from __future__ import annotations

import csv
import json
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hffm_flower.config import RunConfig
from hffm_flower.data.prepare import SOURCES, Prepared, Wanted, prepare
from hffm_flower.errors import ConfigError
from hffm_flower.tasks import TASKS
from tests.support.official_data import (
    TEN,
    make_aqua,
    make_artvqa,
    make_gqa,
    make_hf_dataset,
    make_image_csv,
    make_series_csv,
    make_vizwiz,
)

MAKERS: dict[str, tuple[Callable[[Path], Path], Mapping[str, object]]] = {
    "gqa": (make_gqa, {}),
    "artvqa": (make_artvqa, {}),
    "vizwiz": (make_vizwiz, {}),
    "image-csv": (make_image_csv, {}),
    "series-csv": (make_series_csv, {"window": 5}),
    "hf-datasets": (make_hf_dataset, {}),
}
ROOT = Path(__file__).parents[3]
RUNS, DOCS = ROOT / "deploy" / "runs", ROOT / "docs"
SOME = Wanted(per_answer={"train": 4, "test": 2})


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of prepared tasks."""
    monkeypatch.setenv("HFFM_DATA", str(tmp_path / "tasks"))
    return tmp_path / "tasks"


def rows(made: Prepared, split: str) -> list[dict[str, str]]:
    with (made.folder / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_kind_is_tested() -> None:
    assert list(MAKERS) == list(SOURCES)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_task_is_balanced_and_known_by_its_name(kind: str, tasks: Path, tmp_path: Path) -> None:
    make, settings = MAKERS[kind]
    root = make(tmp_path / "in")
    before = files(root)
    answers = 2 if kind == "series-csv" else 10 if kind != "image-csv" else 7
    wanted = Wanted(answers, SOME.per_answer)
    named = f"{SOURCES[kind].name}{answers}"
    name = "" if SOURCES[kind].name else f"mine-{answers}"
    made = prepare(kind, root, settings=settings, wanted=wanted, name=name)
    assert files(root) == before
    assert made.name == (name or named)
    assert made.folder == tasks / made.name
    assert [p.name for p in tasks.iterdir()] == [made.name]
    for split, count in SOME.per_answer.items():
        table = rows(made, split)
        assert Counter(row["answer"] for row in table) == dict.fromkeys(made.counts, count)
        assert all((row["text"] != "") == (kind != "series-csv") for row in table)
    spec = TASKS[made.name]
    assert spec.answers == tuple(made.counts)
    assert (spec.dataset, spec.head) == ("prepared", "classification")
    assert spec.chance == pytest.approx(1 / answers)
    assert spec.required == (("sensor",) if kind == "series-csv" else ("image",))
    assert spec.optional == (() if kind == "series-csv" else ("text",))
    # Nothing is tested that was trained on.
    seen = {split: {row["file"] for row in rows(made, split)} for split in ("train", "test")}
    assert not seen["train"] & seen["test"]


@pytest.mark.parametrize("kind", ["gqa", "artvqa", "vizwiz"])
def test_answers_are_the_commonest_normalised_ones(kind: str, tasks: Path, tmp_path: Path) -> None:
    root = MAKERS[kind][0](tmp_path / "in")
    made = prepare(kind, root, wanted=SOME)
    assert tuple(made.counts) == TEN
    by_label = [{row["text"] for row in rows(made, "train") if row["answer"] == a} for a in TEN]
    assert all(len(texts) == 1 for texts in by_label)  # a text names its label, and one only
    report = json.loads((made.folder / "prepared.json").read_text())
    assert report["available"]["yes"] == {"train": 13, "test": 12}
    assert report["other_answers"] == {"train": 1, "test": 1}
    assert (report["seed"], report["kind"]) == (1, kind)


def test_the_published_paintings_are_enough_for_the_defaults_and_for_the_case_study(
    tasks: Path, tmp_path: Path
) -> None:
    root = make_aqua(tmp_path / "in")
    study = RunConfig.load(RUNS / "case-study.toml").data
    asked = {"train": study.train_per_answer, "test": study.test_per_answer}
    assert shlex.join(f"--{s}-per-answer={n}" for s, n in asked.items()).replace("=", " ") in (
        (DOCS / "case-study.md").read_text("utf-8")
    )
    for wanted in (Wanted(), Wanted(10, {"train": asked["train"], "test": asked["test"]})):
        made = prepare("artvqa", root, wanted=wanted, replace=True)
        assert list(made.counts.values()) == [dict(wanted.per_answer)] * 10
    with pytest.raises(ConfigError, match=r"but 9 have 300 train and 51 test examples; .*; "
                       "--test-per-answer 50 would do; or ask for fewer"):  # fmt: skip
        prepare("artvqa", root, wanted=Wanted(10, {"train": 300, "test": 51}), replace=True)


def test_answers_can_be_named_in_any_spelling(tasks: Path, tmp_path: Path) -> None:
    root = make_gqa(tmp_path / "in")
    made = prepare("gqa", root, wanted=Wanted(("The Cat", "two"), SOME.per_answer))
    assert made.name == "gqa2"
    assert TASKS["gqa2"].answers == ("cat", "2")


def test_the_seed_alone_says_what_is_drawn(tasks: Path, tmp_path: Path) -> None:
    root = make_gqa(tmp_path / "in")
    made = [
        prepare("gqa", root, wanted=Wanted(3, SOME.per_answer, seed), name=name)
        for seed, name in ((1, "a"), (1, "b"), (2, "c"))
    ]
    assert files(made[0].folder) == files(made[1].folder)
    assert rows(made[0], "train") != rows(made[2], "train")
    # More examples of an answer, or more answers, do not change those that there were.
    more = prepare("gqa", root, wanted=Wanted(5, {"train": 5, "test": 3}), name="more")
    kept = {tuple(row.items()) for row in rows(more, "train")}
    assert {tuple(row.items()) for row in rows(made[0], "train")} <= kept


def test_pictures_that_cannot_be_used_are_named_and_replaced(tasks: Path, tmp_path: Path) -> None:
    root = make_gqa(tmp_path / "in")
    broken = [root / "images" / f"train{i}.jpg" for i in range(9)]  # of 13 yes
    for path in broken[:5]:
        path.write_bytes(path.read_bytes()[:300])
    for path in broken[5:]:
        path.unlink()
    (root / "images" / "train13.jpg").write_bytes(b"no picture")  # of 12 no
    made = prepare("gqa", root, wanted=SOME)
    assert made.counts["yes"] == {"train": 4, "test": 2}
    assert {row["file"] for row in rows(made, "train")}.isdisjoint(
        {f"images/{path.name}" for path in broken}
    )
    lines = made.unusable.lines()
    assert [line.split(": ")[0].split(" ", 1)[1] for line in lines] == [
        "missing file", "unreadable file",
    ]  # fmt: skip
    report = json.loads((made.folder / "prepared.json").read_text())
    assert report["unusable"] == dict(made.unusable.counts)
    assert report["first_of_each"] == lines
    # Without spare ones, an answer has fewer examples.
    few = prepare("gqa", root, wanted=Wanted(("yes", "2"), {"train": 9, "test": 2}))
    assert few.counts["yes"]["train"] == 4
    assert few.unusable.counts == {"missing file": 4, "unreadable file": 5}
    assert few.unusable.lines()[0].count("images/") == 3


def test_what_is_not_used_of_the_annotations_is_counted(tasks: Path, tmp_path: Path) -> None:
    art = prepare("artvqa", make_artvqa(tmp_path / "art"), wanted=SOME)
    questions = [
        one for split in ("train", "val", "test")
        for one in json.loads((tmp_path / "art" / "AQUA" / f"{split}.json").read_text())
    ]  # fmt: skip
    knowing = sum(one["need_external_knowledge"] for one in questions)
    assert art.skipped.counts == {"needs external knowledge": knowing}
    root = make_vizwiz(tmp_path / "viz")
    path = root / "Annotations" / "train.json"
    found: list[dict[str, Any]] = json.loads(path.read_text())
    found[0]["answers"], found[1]["question"] = [{"answer": "?"}], " \n"
    path.write_text(json.dumps(found))
    assert prepare("vizwiz", root, wanted=SOME).skipped.counts == {"no answer": 1, "no text": 1}


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def test_names_and_texts_that_no_file_can_hold_are_counted(tasks: Path, tmp_path: Path) -> None:
    root = make_gqa(tmp_path / "in")

    def spoil(found: dict[str, Any]) -> None:
        entries = [one for one in found.values() if one["answer"].lower() == "yes"][:3]
        entries[0]["question"] = "half \ud83d?"
        entries[1]["imageId"] = "half\udc00"
        entries[2]["imageId"] = "x" * 5000
        found["\ud800"] = {**entries[0], "question": " "}

    changed(root / "train_balanced_questions.json", spoil)
    made = prepare("gqa", root, wanted=Wanted(("yes", "no"), {"train": 13, "test": 2}))
    assert made.skipped.counts == {"half a character": 2, "no text": 1}
    assert made.skipped.lines()[1] == "1 no text: \\ud800"
    assert made.unusable.counts == {"unreadable file": 1}


def test_a_picture_of_many_questions_is_named_once(tasks: Path, tmp_path: Path) -> None:
    root = make_gqa(tmp_path / "in")

    def ask_again(found: dict[str, Any]) -> None:
        one = next(one for one in found.values() if one["answer"].lower() == "yes")
        one["imageId"] = "gone"
        found.update({f"again{i}": one for i in range(3)})

    changed(root / "train_balanced_questions.json", ask_again)
    made = prepare("gqa", root, wanted=Wanted(("yes", "no"), {"train": 20, "test": 2}))
    assert made.unusable.lines() == ["4 missing file: images/gone.jpg"]


def test_nesting_without_end_and_a_file_of_pictures_are_refused(
    tasks: Path, tmp_path: Path
) -> None:
    root = make_gqa(tmp_path / "in")
    path = root / "train_balanced_questions.json"
    whole = path.read_text()
    path.write_text('{"deep": {"a": ' + "[" * 200_000 + "]" * 200_000 + "}}")
    with pytest.raises(ConfigError, match=r"cannot be read \(entry 'deep'\): maximum recursion"):
        prepare("gqa", root, wanted=SOME)
    path.write_text(whole)
    (root / "images").rename(root / "elsewhere")
    (root / "images").write_text("no folder")
    with pytest.raises(ConfigError, match="has no images nor allImages/images"):
        prepare("gqa", root, wanted=SOME)


def test_a_column_says_what_is_for_testing(tasks: Path, tmp_path: Path) -> None:
    root = make_image_csv(tmp_path / "in", split=True)
    made = prepare("image-csv", root, wanted=SOME, name="told")
    with (root / "examples.csv").open(newline="") as file:
        told = {row["text"]: row["split"] for row in csv.DictReader(file)}
    for split in ("train", "test"):
        assert {told[row["text"]] for row in rows(made, split)} == {split}


def test_windows_are_normalised_as_those_of_training(tasks: Path, tmp_path: Path) -> None:
    root = make_series_csv(tmp_path / "in", recordings=10)
    wanted = Wanted(2, {"train": 16, "test": 4})
    made = prepare("series-csv", root, settings={"window": 5}, wanted=wanted, name="shake")
    windows = [np.load(made.folder / row["file"]) for row in rows(made, "train")]
    assert np.shape(windows) == (32, 5, 3)
    assert np.mean(windows, axis=(0, 1)) == pytest.approx(np.zeros(3), abs=1e-5)
    assert np.std(windows, axis=(0, 1)) == pytest.approx(np.ones(3), abs=1e-5)


def test_saved_tables_may_have_no_splits_and_other_columns(tasks: Path, tmp_path: Path) -> None:
    names = {"image": "photo", "answer": "label", "question": "caption"}
    root = make_hf_dataset(tmp_path / "in", test=0, train=9, columns=names)
    settings = {"image": "photo", "answer": "label"}
    made = prepare("hf-datasets", root, settings=settings, wanted=SOME, name="photos")
    assert TASKS["photos"].optional == ()
    assert {p.name for p in made.folder.iterdir()} == {
        "task.toml", "train.csv", "test.csv", "prepared.json", "files",
    }  # fmt: skip
    settings["text"] = "caption"
    prepare("hf-datasets", root, settings=settings, wanted=SOME, name="texts")
    assert TASKS["texts"].optional == ("text",)
