"""How answers are compared: what people write differently and mean alike is one answer.

Annotations, the vocabulary of a task and a device's own data all pass through `normalised`.

Source: the steps of the evaluation of VQA (Antol et al. 2015, arXiv 1505.00468;
visualqa.org/evaluation). One differs: it adds apostrophes that are missing in contractions,
here all are dropped; either way *dont* equals *don't*.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

ARTICLES: Final = frozenset({"a", "an", "the"})
NUMBERS: Final[Mapping[str, str]] = {
    **{"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4"},
    **{"five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"},
}
MARKS: Final = ';/[]"{}()=+\\_-><@`,?!'
APOSTROPHES: Final = re.compile("['\u2019]")
THOUSANDS: Final = re.compile(r"\d,\d")
FULL_STOP: Final = re.compile(r"\.(?!\d)")


def normalised(answer: str) -> str:
    """An answer as it is compared; empty if nothing is left.

    Lower case; a punctuation mark becomes a space, or goes where it stands beside one;
    so do a comma in a number, apostrophes, and full stops but in front of a digit; number words
    become digits; articles and needless white space go.
    """
    text = given = APOSTROPHES.sub("", " ".join(answer.split()).casefold())
    joined = THOUSANDS.search(given) is not None
    for mark in MARKS:
        if mark in given:
            beside = joined or f"{mark} " in given or f" {mark}" in given
            text = text.replace(mark, "" if beside else " ")
    words = (NUMBERS.get(word, word) for word in FULL_STOP.sub("", text).split())
    return " ".join(word for word in words if word not in ARTICLES)


def majority(answers: Iterable[str]) -> str:
    """The commonest normalised answer, among equals the first by the alphabet; empty if none."""
    counts = Counter(word for answer in answers if (word := normalised(answer)))
    return min(counts, key=lambda word: (-counts[word], word), default="")
