"""Emoji with their names: to find the name of a picture, or to write it.

Retrieval: every emoji of the catalogue; pictures and names of training and test are
disjoint. Captions: people in all five skin tones, named by words that several emoji share,
such as "woman farmer medium-dark"; no test picture is in training, but every word is.

Source: as `hffm_flower.data.emoji`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hffm_flower.data.captions import encode, words_of
from hffm_flower.data.dataset import Indices, Item, Split, no_modality, text_item
from hffm_flower.data.emoji import CATEGORIES, charted, drawing, open_font, sequence
from hffm_flower.data.emoji_font import SELECTOR, EmojiFont
from hffm_flower.seeding import generator
from hffm_flower.tasks import TASKS

TEST_SHARE: Final = 0.3
GALLERY: Final = 20
EXAMPLES_PER_ANSWER: Final = 10  # so that the task is as large as a ten-answer one
TONES: Final = ("light", "medium-light", "medium", "medium-dark", "dark")
FIRST_TONE: Final = 0x1F3FB


class Named(NamedTuple):
    """A drawing and its name; ``label`` is its category, for partitioning."""

    glyph: int
    name: str
    label: int


class EmojiNames:
    """Drawings, each to be found the name of among `GALLERY` names; at most all there are."""

    assets: ClassVar[tuple[str, ...]] = ("openmoji", "emoji-data")

    def __init__(
        self, task: str, *, train_per_answer: int, test_per_answer: int, seed: int
    ) -> None:
        self._task, self._seed = task, seed
        self._font = open_font()
        counts: dict[Split, int] = {"train": train_per_answer, "test": test_per_answer}
        self._rows = _divided(task, list(_catalogue(self._font)), counts, seed)

    def labels(self, split: Split) -> NDArray[np.int64]:
        """Categories [N]."""
        return np.array([row.label for row in self._rows[split]], dtype=np.int64)

    def groups(self, split: Split) -> None:
        """No natural owners."""

    def targets(self, split: Split, indices: Indices) -> NDArray[np.int64]:
        """Whose names to choose from: the own [n, 1], in the test [n, G] with G - 1 others."""
        own = np.asarray(indices, dtype=np.int64).reshape(-1, 1)
        if split == "train":
            return own
        count = len(self._rows[split])
        others = np.empty((len(own), min(GALLERY, count) - 1), dtype=np.int64)
        for at, row in enumerate(own[:, 0]):
            rng = generator(self._seed, "data", self._task, "gallery", int(row))
            drawn = rng.permutation(count - 1)[: others.shape[1]]
            others[at] = drawn + (drawn >= row)
        return np.concatenate([own, others], axis=1)

    def items(self, modality: str, split: Split, indices: Indices) -> list[Item]:
        """Drawings, or names."""
        rows = [self._rows[split][i] for i in indices]
        if modality == "image":
            return [drawing(self._font, row.glyph) for row in rows]
        if modality == "text":
            return [text_item(row.name) for row in rows]
        raise no_modality(self._task, modality, "image, text")


class EmojiCaptions:
    """Drawings of people, each with a caption of words of the task; at most all there are."""

    assets: ClassVar[tuple[str, ...]] = ("openmoji", "emoji-data")

    def __init__(
        self, task: str, *, train_per_answer: int, test_per_answer: int, seed: int
    ) -> None:
        self._task = task
        self._words = TASKS[task].parts
        self._font = open_font()
        counts: dict[Split, int] = {"train": train_per_answer, "test": test_per_answer}
        self._rows = _divided(task, list(_people(self._font, self._words)), counts, seed)

    def labels(self, split: Split) -> NDArray[np.int64]:
        """Skin tones [N]; 0 for none."""
        return np.array([row.label for row in self._rows[split]], dtype=np.int64)

    def groups(self, split: Split) -> None:
        """No natural owners."""

    def targets(self, split: Split, indices: Indices) -> NDArray[np.int64]:
        """Captions [n, L] as `hffm_flower.data.captions` writes them."""
        return encode([self._rows[split][i].name for i in indices], self._words)

    def items(self, modality: str, split: Split, indices: Indices) -> list[Item]:
        """Drawings."""
        if modality != "image":
            raise no_modality(self._task, modality, "image")
        return [drawing(self._font, self._rows[split][i].glyph) for i in indices]


def _catalogue(font: EmojiFont) -> Iterator[Named]:
    """Every glyph that has a category and a name of its own."""
    labels = {category: i for i, category in enumerate(CATEGORIES)}
    seen: set[int | str] = set()
    for entry in charted():
        glyph, name = font.glyph(sequence(entry)), " ".join(words_of(entry["name"]))
        if glyph is not None and entry["category"] in labels and seen.isdisjoint((glyph, name)):
            seen.update((glyph, name))
            yield Named(glyph, name, labels[entry["category"]])


def _people(font: EmojiFont, words: Sequence[str]) -> Iterator[Named]:
    """Emoji in all tones whose names are made of ``words``: without a tone, and in each."""
    known = set(words)
    seen: set[int | None] = set()
    names: set[str] = set()
    for entry in charted():
        name = words_of(entry["name"])
        if not known.issuperset(name) or " ".join(name) in names:
            continue
        first, *rest = sequence(entry)
        rest = rest[1:] if rest[:1] == [SELECTOR] else rest
        codes = [(first, *rest), *((first, FIRST_TONE + i, *rest) for i in range(len(TONES)))]
        glyphs = [font.glyph(c) for c in codes]
        if None in glyphs or seen.intersection(glyphs):
            continue
        seen.update(glyphs)
        names.add(" ".join(name))
        for label, (glyph, tone) in enumerate(zip(glyphs, ("", *TONES), strict=True)):
            if glyph is not None:
                yield Named(glyph, " ".join([*name, tone]).strip(), label)


def _divided(
    task: str, rows: Sequence[Named], counts: dict[Split, int], seed: int
) -> dict[Split, list[Named]]:
    """Rows of training and test, drawn apart by ``seed``."""
    mixed = [rows[i] for i in generator(seed, "data", task, "split").permutation(len(rows))]
    cut = round(len(mixed) * TEST_SHARE)
    halves: dict[Split, list[Named]] = {"test": mixed[:cut], "train": mixed[cut:]}
    return {s: halves[s][: n * EXAMPLES_PER_ANSWER] for s, n in counts.items()}
