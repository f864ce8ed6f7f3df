"""Small folders in the form in which public data sets come: GQA, AQUA, VizWiz, and others.

Pictures of an answer are alike (`tests.support.folders.picture`); answers are written in
several ways that mean the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hffm_flower.seeding import generator
from tests.support.folders import picture, write_csv

TEN = ("yes", "no", "cat", "dog", "red", "left", "man", "table", "water", "2")
"""Answers as they are normalised; each is asked about less often than the one before."""
SPELLINGS = ("{}", "The {}", "{}.", " {} ", "{}!")
RARE = "zebra"


def spelt(answer: str, i: int) -> str:
    """An answer as an annotator may have written it."""
    word = {"2": ("two", "2")[i % 2]}.get(answer, answer)
    return SPELLINGS[i % len(SPELLINGS)].format(word.title() if i % 3 == 0 else word)


def cases(answers: Sequence[str], least: int) -> Iterator[tuple[int, str, int]]:
    """Number, answer and label of annotations: ``least`` of the last answer, more of others."""
    number = 0
    for label, answer in enumerate(answers):
        for _ in range(least + len(answers) - label - 1):
            yield number, answer, label
            number += 1
    yield number, RARE, 0


def write_json(path: Path, content: object) -> Path:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def make_gqa(
    root: Path, *, answers: Sequence[str] = TEN, train: int = 4, test: int = 3, side: int = 6
) -> Path:
    """``{question id: {..}}`` for training and validation, and ``images/ID.jpg``."""
    for split, least in (("train", train), ("val", test)):
        found: dict[str, dict[str, Any]] = {}
        for i, answer, label in cases(answers, least):
            image = f"{split}{i}"
            picture(root / "images" / f"{image}.jpg", label, size=(side, side - side // 3))
            found[f"{i:08}"] = {
                "imageId": image,
                "question": f"What is in\nthe {label}. picture, of {side}?",
                "answer": spelt(answer, i),
                "fullAnswer": f"It is {answer}.",
                "isBalanced": True,
                "groups": {"global": None, "local": "10q-x"},
                "semantic": [{"operation": "select", "argument": "x", "dependencies": []}],
            }
        write_json(root / f"{split}_balanced_questions.json", found)
    return root


def make_artvqa(root: Path, *, answers: Sequence[str] = TEN, train: int = 4, test: int = 3) -> Path:
    """``AQUA/*.json`` beside ``SemArt/Images``; every third question needs knowledge besides.

    Of the tests, every second one is in ``val.json``.
    """
    found: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    for part, least in (("train", train), ("test", test)):
        for i, answer, label in cases(answers, least):
            split = "val" if part == "test" and i % 2 else part
            image = picture(root / "SemArt" / "Images" / f"{split}-{i}.jpg", label)
            one = {"image": image, "question": f"what is {label}", "answer": spelt(answer, i)}
            found[split].append({**one, "need_external_knowledge": False})
            if i % 3 == 0:
                asked = {"question": "who painted it", "answer": "Rembrandt"}
                found[split].append({**one, **asked, "need_external_knowledge": True})
    for split, content in found.items():
        write_json(root / "AQUA" / f"{split}.json", content)
    return root


AQUA = {
    "person": (341, 227), "people": (176, 172), "human": (104, 101), "building": (79, 73),
    "church": (44, 51), "man": (42, 47), "woman": (36, 37), "hat": (30, 41), "other": (50, 14),
    "table": (19, 31), "horse": (33, 13), "boat": (29, 16), "clothing": (29, 16), "room": (28, 12),
    "plant": (24, 13), "tree": (12, 24),
}  # fmt: skip
"""Answer -> how often the published ``val.json`` and ``test.json`` have it, of paintings alone."""


def make_aqua(root: Path) -> Path:
    """Validation and tests as thin as the published ones; one picture for each answer."""
    for at, split in enumerate(("train", "val", "test")):
        found = []
        for label, (answer, counts) in enumerate(AQUA.items()):
            image = picture(root / "SemArt" / "Images" / f"{split}-{label}.jpg", label)
            one = {"image": image, "question": "what is it", "answer": answer}
            count = (300, *counts)[at]
            found += [{**one, "need_external_knowledge": False}] * count
        write_json(root / "AQUA" / f"{split}.json", found)
    return root


def make_vizwiz(root: Path, *, answers: Sequence[str] = TEN, train: int = 4, test: int = 3) -> Path:
    """``Annotations/*.json`` beside ``train/`` and ``val/``; six of ten annotators agree."""
    for split, least in (("train", train), ("val", test)):
        found = []
        for i, answer, label in cases(answers, least):
            image = picture(root / split / f"VizWiz_{split}_{i:08}.jpg", label)
            given = [spelt(answer, k) for k in range(6)] + ["unsuitable"] * 3 + ["blue"]
            found.append(
                {
                    "image": image,
                    "question": f"What is this, number {label}?",
                    "answers": [{"answer": a, "answer_confidence": "maybe"} for a in given],
                    "answer_type": "other",
                    "answerable": 1,
                }
            )
        write_json(root / "Annotations" / f"{split}.json", found)
    write_json(root / "Annotations" / "test.json", [{"image": "x.jpg", "question": "what?"}])
    return root


def make_hf_dataset(
    root: Path,
    *,
    answers: Sequence[str] = TEN,
    train: int = 4,
    test: int = 3,
    columns: Mapping[str, str] | None = None,
) -> Path:
    """What ``save_to_disk`` writes, answers as class labels; ``test`` = 0: one part, no splits."""
    import datasets

    datasets.disable_progress_bars()
    named = {"image": "image", "question": "question", "answer": "answer", **(columns or {})}
    features = datasets.Features(
        {
            named["image"]: datasets.Image(),
            named["question"]: datasets.Value("string"),
            named["answer"]: datasets.ClassLabel(names=[*answers, RARE]),
        }
    )
    parts = {}
    for split, least in (("train", train), ("validation", test)):
        rows: dict[str, list[Any]] = {name: [] for name in named.values()}
        for i, answer, label in cases(answers, least) if least else ():
            grey = generator(i, "hf", split).integers(0, 90, (4, 6))
            grey[:, label % 6] = 230
            rows[named["image"]].append(Image.fromarray(grey.astype(np.uint8)).convert("RGB"))
            rows[named["question"]].append(f"what is {label}?")
            rows[named["answer"]].append(answer)
        if least:
            parts[split] = datasets.Dataset.from_dict(rows, features=features)
    (datasets.DatasetDict(parts) if test else parts["train"]).save_to_disk(root)
    return root


def make_image_csv(
    root: Path, *, answers: Sequence[str] = TEN, count: int = 12, split: bool = False
) -> Path:
    """``examples.csv`` and pictures, two questions of each picture."""
    rows = []
    for i, answer, label in cases(answers, count):
        name = picture(root / f"{i // 2 * 2}.png", label)
        told = ("train", "test")[i % 4 == 0]
        rows.append((name, f"what is {i}?", spelt(answer, i), *([told] if split else [])))
    write_csv(
        root / "examples.csv", ("image", "text", "answer", *(["split"] if split else [])), rows
    )
    return root


def make_series_csv(
    root: Path, *, recordings: int = 8, windows: int = 4, shape: tuple[int, int] = (5, 3)
) -> Path:
    """Recordings of *Still* and *Shaken*, and ``examples.csv``."""
    samples, channels = shape
    names = [f"c{i}" for i in range(channels)]
    for i in range(recordings):
        signal = generator(i, "series").normal(9.8, 0.1 + i % 2, (samples * windows, channels))
        write_csv(root / f"r{i}.csv", names, signal.round(4).tolist())
    rows = [(f"r{i}.csv", ("Still", "Shaken.")[i % 2]) for i in range(recordings)]
    write_csv(root / "examples.csv", ("file", "answer"), rows)
    return root
