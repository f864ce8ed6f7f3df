"""Folders and settings that no task can be made of: what is wrong, what is allowed, how many."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hffm_flower.data.dataset import Split
from hffm_flower.data.prepare import Wanted, prepare
from hffm_flower.errors import ConfigError
from hffm_flower.seeding import generator
from tests.support.folders import write_csv
from tests.support.official_data import make_gqa, make_hf_dataset, make_image_csv, make_series_csv

SOME: Mapping[Split, int] = {"train": 2, "test": 1}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HFFM_DATA", str(tmp_path / "tasks"))
    return tmp_path


def refused(home: Path, kind: str, root: Path, **more: Any) -> str:
    """What the error says; nothing is left behind."""
    more = {"wanted": Wanted(3, SOME), "name": "mine", **more}
    with pytest.raises(ConfigError) as caught:
        prepare(kind, root, **more)
    assert caught.value.key
    tasks = home / "tasks"
    assert not tasks.exists() or list(tasks.iterdir()) == []
    return f"{caught.value.key}: {caught.value}"


def test_a_folder_of_another_layout(home: Path) -> None:
    root = make_image_csv(home / "in", count=1)
    said = refused(home, "gqa", root)
    for part in (
        "root:", "it has no images nor allImages/images", "it holds: 0.png, 10.png", " more;",
        "needed: train_balanced_questions.json", "docs/datasets.md",
    ):  # fmt: skip
        assert part in said
    (root / "images").mkdir()
    assert "no train_balanced_questions.json nor questions1.2/train" in refused(home, "gqa", root)
    assert "no SemArt/Images nor Images" in refused(home, "artvqa", root)
    assert "Annotations/train.json nor train.json" in refused(home, "vizwiz", root)
    assert "is no folder of save_to_disk" in refused(home, "hf-datasets", root)
    empty = home / "empty"
    empty.mkdir()
    assert "it has no examples.csv; it holds: nothing" in refused(home, "image-csv", empty)
    assert "does not exist" in refused(home, "gqa", home / "no")
    assert "is not a folder" in refused(home, "gqa", root / "examples.csv")


def change(root: Path, edit: Callable[[dict[str, Any]], None], first: int) -> Path:
    """Edit the first few annotations of a GQA folder."""
    path = root / "train_balanced_questions.json"
    found = json.loads(path.read_text())
    for one in list(found.values())[:first]:
        edit(one)
    path.write_text(json.dumps(found))
    return root


def test_annotations_without_the_field(home: Path) -> None:
    root = change(make_gqa(home / "in"), lambda one: one.pop("answer"), 5)
    said = refused(home, "gqa", root)
    assert "train_balanced_questions.json' has annotations 5 without 'answer': " in said
    assert "'00000000', '00000001', '00000002', ...; every one needs: imageId, question" in said
    change(root, lambda one: one.update(answer=3), 2)
    assert "2 whose 'answer' is no str: '00000000', '00000001'" in refused(home, "gqa", root)


def test_a_file_that_is_no_json(home: Path) -> None:
    root = make_gqa(home / "in")
    (root / "val_balanced_questions.json").write_text('{"1": {"imageId": "x"')
    assert "val_balanced_questions.json' cannot be read (entry '1')" in refused(home, "gqa", root)


def test_labels_outside_the_vocabulary(home: Path) -> None:
    root = make_gqa(home / "in")
    said = refused(home, "gqa", root, wanted=Wanted(("yes", "Zebras"), SOME))
    assert said.startswith("answers: answer 'zebras' does not occur")
    assert "near: zebra; the commonest: yes, no, cat, dog, red" in said
    said = refused(home, "gqa", root, wanted=Wanted(("dog", "The dog."), SOME))
    assert "at least 2 are needed, each once; given, as they are normalised: 'dog', 'dog'" in said
    with pytest.raises(ConfigError, match="1 answers are no task"):
        Wanted(1)
    with pytest.raises(ConfigError, match="0 is less than 1"):
        Wanted(2, {"test": 0})


def test_too_few_examples(home: Path) -> None:
    root = make_gqa(home / "in")
    said = refused(home, "gqa", root, wanted=Wanted(10, {"train": 5, "test": 3}))
    assert "10 answers wanted, but 9 have 5 train and 3 test examples" in said
    assert "the next: '2' 4 and 3, 'zebra' 1 and 1; " in said
    assert said.endswith("; --train-per-answer 4 would do; or ask for fewer answers")
    said = refused(home, "gqa", root, wanted=Wanted(10, {"train": 4, "test": 5}))
    assert "; --test-per-answer 3 would do; " in said
    said = refused(home, "gqa", root, wanted=Wanted(10, {"train": 5, "test": 5}))
    assert "; neither number of examples alone would do; " in said
    for path in (root / "images").glob("val*.jpg"):
        path.unlink()
    said = refused(home, "gqa", root)
    assert "answer 'yes' has no test example that can be used; left out: 12 missing file" in said


WRONG: dict[str, tuple[str, Mapping[str, object], str]] = {
    "kind": ("gqq", {}, "kind: unknown kind 'gqq' (did you mean 'gqa'?)"),
    "setting of another kind": ("gqa", {"window": 5}, "window: kind 'gqa' has no such setting"),
    "missing setting": ("series-csv", {}, "window: kind 'series-csv' needs it"),
    "value": ("series-csv", {"window": 0}, "window: 0 is not allowed: Input should be greater"),
    "channel": ("series-csv", {"window": 5, "channels": ("gx",)}, "channels: "),
    "table": ("image-csv", {"csv": "x.csv"}, "root: "),
    "column": ("hf-datasets", {"answer": "label"}, "answer: "),
    "text column": ("hf-datasets", {"text": "caption"}, "text: "),
    "no picture": ("hf-datasets", {"image": "question"}, "image: column 'question'"),
}


MAKERS: dict[str, Callable[[Path], Path]] = {
    "series-csv": make_series_csv,
    "hf-datasets": make_hf_dataset,
    "gqa": make_gqa,
}


@pytest.mark.parametrize("case", WRONG)
def test_settings(home: Path, case: str) -> None:
    kind, settings, part = WRONG[case]
    root = MAKERS.get(kind, make_image_csv)(home / "in")
    assert refused(home, kind, root, settings=settings).startswith(part)


def no_room(old: Path, new: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new))


@pytest.mark.parametrize("reading", ["is_dir", "is_file"])
def test_a_root_that_cannot_be_read(
    home: Path, monkeypatch: pytest.MonkeyPatch, reading: str
) -> None:
    root = make_gqa(home / "in")
    usual = getattr(Path, reading)

    def forbidden(path: Path, *more: Any, **options: Any) -> Any:
        if path.is_relative_to(root):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return usual(path, *more, **options)

    monkeypatch.setattr(Path, reading, forbidden)
    assert refused(home, "gqa", root).startswith(f"root: Permission denied: '{root}")


def test_names_and_places(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_gqa(home / "in")
    assert "'watch7' is a task of the package" in refused(home, "gqa", root, name="watch7")
    for name in ("a/b", "..", "a.b", "a b", ""):
        kind = "image-csv" if not name else "gqa"
        assert "is no name of a task" in refused(home, kind, root, name=name)
    (home / "file").write_text("")
    assert "cannot be written" in refused(home, "gqa", root, out=home / "file")
    with monkeypatch.context() as full:
        full.setattr(os, "replace", no_room)
        assert "out: No space left on device: " in refused(home, "gqa", root)
    made = prepare("gqa", root, wanted=Wanted(3, SOME))
    with pytest.raises(ConfigError, match="is there already; --replace"):
        prepare("gqa", root, wanted=Wanted(3, SOME))
    assert prepare("gqa", root, wanted=Wanted(3, SOME, 2), replace=True).folder == made.folder
    assert [p.name for p in made.folder.parent.iterdir()] == ["gqa3"]


def test_a_split_is_train_or_test(home: Path) -> None:
    rows = [("a.png", "yes", "train"), ("b.png", "no", "dev"), ("c.png", "no", "dev")]
    write_csv(home / "in" / "examples.csv", ("image", "answer", "split"), rows)
    said = refused(home, "image-csv", home / "in")
    assert "has 2 split 'dev': b.png, c.png; a split is train or test" in said


def test_a_window_with_a_gap_is_left_out(home: Path) -> None:
    root = make_series_csv(home / "in")
    samples = generator(0, "x").normal(0, 1, (12, 3)).tolist()
    samples[7][1] = "?"
    write_csv(root / "r0.csv", ("c0", "c1", "c2"), samples)
    made = prepare("series-csv", root, settings={"window": 5}, wanted=Wanted(2, SOME), name="s")
    assert made.skipped.lines() == ["1 not a number: r0.csv"]
