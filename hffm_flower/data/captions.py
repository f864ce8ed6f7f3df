"""Captions as numbers: word i of a vocabulary is i + 1, 0 ends a caption and fills it up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

LONGEST: Final = 8
"""Words of a caption, at most."""
END: Final = 0
_WORD: Final = re.compile(r"[\w'-]+")


def words_of(text: str) -> list[str]:
    """Words of a text, in lower case, without punctuation."""
    return _WORD.findall(text.casefold())


def writable(caption: str, words: Sequence[str]) -> bool:
    """Whether a caption has no other words than these, and not too many."""
    found = words_of(caption)
    return 0 < len(found) <= LONGEST and set(words).issuperset(found)


def encode(captions: Sequence[str], words: Sequence[str]) -> NDArray[np.int64]:
    """Captions that are `writable`, as int64 [n, `LONGEST`]."""
    number = {word: i + 1 for i, word in enumerate(words)}
    written = np.full((len(captions), LONGEST), END, dtype=np.int64)
    for row, caption in enumerate(captions):
        found = words_of(caption)
        written[row, : len(found)] = [number[word] for word in found]
    return written


def decode(numbers: Sequence[int], words: Sequence[str]) -> str:
    """The caption that ``numbers`` write, up to the first end."""
    return " ".join(words[n - 1] for n in until_end(numbers))


def until_end(numbers: Sequence[int]) -> list[int]:
    """Numbers before the first end."""
    found = list(numbers)
    return found[: found.index(END)] if END in found else found
