"""Public sets of questions about pictures, as their authors publish them.

Sources: GQA: Hudson and Manning 2019, arXiv 1902.09506, ``questions1.2.zip`` and
``images.zip`` of cs.stanford.edu/people/dorarad/gqa. AQUA: Garcia et al. 2020, arXiv 2008.12520,
the folder ``AQUA`` of github.com/noagarcia/ArtVQA, with the pictures of SemArt (Garcia and
Vogiatzis 2018, arXiv 1810.09617). VizWiz-VQA: Gurari et al. 2018, arXiv 1802.08218, vizwiz.org.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import ClassVar, Final

import numpy as np

from hffm_flower.data.answers import majority, normalised
from hffm_flower.data.own_images import picture
from hffm_flower.data.own_task import Skipped
from hffm_flower.data.prepare.source import (
    Annotated,
    Example,
    Source,
    Taken,
    one_line,
    read_annotations,
)

HALVES: Final = re.compile("[\ud800-\udfff]")
"""Surrogates that JSON may have alone; no file can be written with one."""


class Gqa(Source):
    """``{question id: {"imageId": .., "question": .., "answer": .., ...}}``, the balanced files.

    Tests are drawn from the validation questions, or from ``testdev`` where they are absent.
    """

    name: ClassVar[str] = "gqa"
    layout: ClassVar[str] = (
        "train_balanced_questions.json and val_balanced_questions.json (or testdev_..), here or "
        "in questions1.2/, and images/ID.jpg"
    )

    def read(self, root: Path, rng: np.random.Generator) -> Annotated:
        """Read the two files."""
        del rng  # the splits are the authors'
        places = ("", "questions1.2/", "questions/")
        train, val, testdev = (
            [f"{p}{s}_balanced_questions.json" for p in places] for s in ("train", "val", "testdev")
        )
        images = self.find(root, "images", "allImages/images", folder=True).relative_to(root)
        skipped = Skipped()

        def examples(path: Path) -> Iterator[Example]:
            for name, one in read_annotations(
                path, {"imageId": str, "question": str, "answer": str}
            ):
                ref = f"{images}/{one['imageId']}.jpg"
                yield from _kept(name, normalised(one["answer"]), ref, one["question"], skipped)

        files = self.find(root, *train), self.find(root, *val, *testdev)
        return _pictures(root, examples, files, skipped)


class ArtVqa(Source):
    """AQUA: ``[{"image": .., "question": .., "answer": .., "need_external_knowledge": ..}]``.

    Only questions that the painting itself answers are used. Tests are drawn from ``val.json``
    and ``test.json`` together: in ``test.json`` alone only five answers have 50 of them.
    """

    name: ClassVar[str] = "artvqa"
    layout: ClassVar[str] = (
        "train.json, val.json and test.json, here or in AQUA/, and the paintings in SemArt/Images/"
    )

    def read(self, root: Path, rng: np.random.Generator) -> Annotated:
        """Read the three files."""
        del rng  # the splits are the authors'
        images = self.find(root, "SemArt/Images", "Images", folder=True).relative_to(root)
        skipped = Skipped()

        def examples(path: Path) -> Iterator[Example]:
            form = {"image": str, "question": str, "answer": str, "need_external_knowledge": bool}
            for name, one in read_annotations(path, form):
                if one["need_external_knowledge"]:
                    skipped.add("needs external knowledge", name)
                else:
                    ref = f"{images}/{one['image']}"
                    yield from _kept(name, normalised(one["answer"]), ref, one["question"], skipped)

        splits = ("train", "val", "test")
        files = [self.find(root, f"{s}.json", f"AQUA/{s}.json") for s in splits]
        return _pictures(root, examples, files, skipped)


class VizWiz(Source):
    """``[{"image": .., "question": .., "answers": [{"answer": .., ...}, ..], ...}]``.

    Of the ten answers of a question the commonest counts. Answers of the test set are not
    public: tests are drawn from the validation questions.
    """

    name: ClassVar[str] = "vizwiz"
    layout: ClassVar[str] = "Annotations/train.json and Annotations/val.json, train/ and val/"

    def read(self, root: Path, rng: np.random.Generator) -> Annotated:
        """Read the two files."""
        del rng  # the splits are the authors'
        skipped = Skipped()

        def examples(path: Path) -> Iterator[Example]:
            split = path.stem
            images = self.find(root, split, f"Images/{split}", "Images", folder=True)
            for name, one in read_annotations(
                path, {"image": str, "question": str, "answers": list}
            ):
                given = [a.get("answer") for a in one["answers"] if isinstance(a, dict)]
                answer = majority(a for a in given if isinstance(a, str))
                ref = f"{images.relative_to(root)}/{one['image']}"
                yield from _kept(name, answer, ref, one["question"], skipped)

        files = [self.find(root, f"Annotations/{s}.json", f"{s}.json") for s in ("train", "val")]
        return _pictures(root, examples, files, skipped)


def taken(root: Path, ref: str) -> Taken | str:
    """The picture in a file below ``root``, decoded once to see that it can be."""
    found = picture(root / ref)
    if isinstance(found, str):
        return found
    return Taken(ref, found.item.digest, (root / ref).stat().st_size)


def _kept(name: str, answer: str, ref: str, question: str, skipped: Skipped) -> Iterator[Example]:
    text = one_line(question)
    if not answer:
        skipped.add("no answer", name)
    elif not text:
        skipped.add("no text", name)
    elif HALVES.search(answer + ref + text):
        skipped.add("half a character", name)
    else:
        yield Example(answer, ref, text)


def _pictures(
    root: Path,
    examples: Callable[[Path], Iterator[Example]],
    files: Sequence[Path],
    skipped: Skipped,
) -> Annotated:
    """Training examples of the first file, tests of the others."""
    train, *tests = files
    return Annotated(
        {"train": list(examples(train)), "test": list(chain.from_iterable(map(examples, tests)))},
        "image", texts=True, skipped=skipped, root=root, take=partial(taken, root),
    )  # fmt: skip
