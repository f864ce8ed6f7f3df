"""The seam between a public data set as it lies on disk and a prepared task.

A kind of folder is a subclass of `Source` and a line in `SOURCES`: it reads annotations, all
of them, and can open the input of one of them. What is drawn, checked and written is alike
for all kinds (`hffm_flower.data.prepare.draw`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np

from hffm_flower.data.dataset import Split
from hffm_flower.data.own_task import Skipped, divide
from hffm_flower.data.prepare.json_entries import entries
from hffm_flower.errors import ConfigError
from hffm_flower.sections import Section

SPLITS: Final[tuple[Split, ...]] = ("train", "test")
MOST_LISTED: Final = 8


@dataclass(frozen=True, slots=True)
class Example:
    """One annotation.

    Attributes:
        answer: Normalised.
        ref: Its input, for `Annotated.take`; files that may be equal have equal ones.
        text: Its question, in one line; empty where the kind has none.
    """

    answer: str
    ref: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """An input that can be used.

    Attributes:
        file: Name below the root; where ``content`` is given, its ending.
        digest: Hex SHA-256 of its bytes.
        size: How many bytes.
        content: What goes into the task's own folder; None: the file stays where it is.
    """

    file: str
    digest: str
    size: int
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class Annotated:
    """All annotations of a folder.

    Attributes:
        examples: Split -> its examples, in the order of the files.
        modality: What ``ref`` is of.
        texts: Whether examples have a text.
        skipped: Annotations that are not used.
        root: Folder of the files that stay where they are; None: none does.
        take: Opens the input ``ref`` and checks it; else says why it cannot be used.
    """

    examples: Mapping[Split, Sequence[Example]]
    modality: Literal["image", "sensor"]
    texts: bool
    skipped: Skipped
    root: Path | None
    take: Callable[[str], Taken | str]

    def counts(self, split: Split) -> Counter[str]:
        """Answer -> how many examples."""
        return Counter(example.answer for example in self.examples[split])


class Source(Section, ABC):
    """A kind of folder, and the settings of one.

    Attributes:
        name: What a task of this kind is called, in front of the number of its answers; empty
            where the user has to say it.
        layout: How the folder must look, for messages.
    """

    name: ClassVar[str] = ""
    layout: ClassVar[str]

    @abstractmethod
    def read(self, root: Path, rng: np.random.Generator) -> Annotated:
        """Read all annotations; ``rng`` draws who is for testing where the folder does not say.

        Raises:
            ConfigError: The folder has another layout, or an annotation another form.
        """

    @classmethod
    def find(cls, root: Path, *places: str, folder: bool = False) -> Path:
        """The first of ``places`` below ``root`` that is there, a file or a ``folder``.

        Raises:
            ConfigError: None is.
        """
        for place in places:
            if (root / place).is_dir() if folder else (root / place).is_file():
                return root / place
        raise ConfigError(
            f"{str(root)!r} is not laid out as it must be: it has no {' nor '.join(places)}; it "
            f"holds: {_listed(root)}; needed: {cls.layout} (docs/datasets.md)",
            key="root",
        )


def read_annotations(path: Path, form: Mapping[str, type]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and content of the annotations of a JSON file.

    Raises:
        ConfigError: The file is no such file, or annotations lack a field of ``form``, or have
            something else there; the message counts them and names the first.
    """
    odd = Skipped()
    for name, content in entries(path):
        lost = [f for f, kind in form.items() if not isinstance(content.get(f), kind)]
        if not lost:
            yield name, content
        for field in lost:
            wrong = f"whose {field!r} is no {form[field].__name__}"
            odd.add(wrong if field in content else f"without {field!r}", repr(name))
    if odd.counts:
        raise ConfigError(
            f"{str(path)!r} has annotations {odd}; every one needs: {', '.join(form)}", key="root"
        )


def one_line(text: str) -> str:
    """A text without line breaks and needless white space."""
    return " ".join(text.split())


def share_out(
    examples: Sequence[Example],
    groups: Sequence[Hashable],
    share: float,
    rng: np.random.Generator,
) -> dict[Split, list[Example]]:
    """Cut examples into splits: ``share`` of the groups, of each answer alike, is for testing."""
    label_of = {answer: i for i, answer in enumerate(dict.fromkeys(e.answer for e in examples))}
    test = divide(groups, [label_of[e.answer] for e in examples], share, rng)
    parts: dict[Split, list[Example]] = {"train": [], "test": []}
    for example, tested in zip(examples, test, strict=True):
        parts["test" if tested else "train"].append(example)
    return parts


def _listed(root: Path) -> str:
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in root.iterdir())
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return (", ".join(names[:MOST_LISTED]) or "nothing") + more
