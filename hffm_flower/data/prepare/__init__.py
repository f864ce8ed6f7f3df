"""``hffm data prepare``: a task from a public data set, or from any folder of a known kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from hffm_flower.data.prepare.draw import Wanted, choose, draw
from hffm_flower.data.prepare.generic import HubSource, ImageCsvSource, SeriesCsvSource
from hffm_flower.data.prepare.source import Source, Taken
from hffm_flower.data.prepare.vqa import ArtVqa, Gqa, VizWiz
from hffm_flower.data.prepare.writing import Prepared, Workshop
from hffm_flower.errors import ConfigError, one_of
from hffm_flower.seeding import generator
from hffm_flower.tasks import PACKAGED, TASK_NAME, data_folder

__all__ = ["SOURCES", "Prepared", "Source", "Wanted", "prepare"]

SOURCES: Final[Mapping[str, type[Source]]] = {
    "gqa": Gqa,
    "artvqa": ArtVqa,
    "vizwiz": VizWiz,
    "image-csv": ImageCsvSource,
    "series-csv": SeriesCsvSource,
    "hf-datasets": HubSource,
}


def prepare(
    kind: str,
    root: Path,
    *,
    settings: Mapping[str, object] | None = None,
    wanted: Wanted | None = None,
    name: str = "",
    out: Path | None = None,
    replace: bool = False,
    progress: Callable[[int], None] = lambda total: None,
) -> Prepared:
    """Make a task of a folder: choose answers, draw examples, check their inputs, write tables.

    Args:
        kind: Name in `SOURCES`.
        root: The folder; it is only read.
        settings: Of the kind.
        wanted: Answers, examples per answer, seed.
        name: Of the task; default: that of the kind with the number of answers, ``gqa10``.
        out: Where prepared tasks are; default: `hffm_flower.tasks.data_folder`.
        replace: Whether a prepared task of that name may go.
        progress: Told of every example that was checked, with the number that is wanted.

    Raises:
        ConfigError: A setting, the folder or its annotations cannot be used. Nothing is left.
    """
    source = _source(kind, settings or {})
    wanted = wanted or Wanted()
    root = root.absolute()
    count = wanted.answers if isinstance(wanted.answers, int) else len(wanted.answers)
    name = _name(name or f"{source.name}{count}" * bool(source.name), kind)
    total = count * sum(wanted.per_answer.values())
    try:
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "does not exist"
            raise ConfigError(f"{str(root)!r} {what}", key="root")
        root = root.resolve()
        with Workshop(out or data_folder(), name, replace=replace) as workshop:
            found = source.read(root, generator(wanted.seed, "prepare", "split"))
            answers = choose(found, wanted)

            def keep(taken: Taken) -> Taken:
                progress(total)
                return workshop.store(taken)

            drawn, unusable = draw(found, answers, wanted, keep=keep)
            return workshop.finish(kind, found, answers, drawn, unusable=unusable, wanted=wanted)
    except OSError as error:
        key = "root" if Path(str(error.filename)).is_relative_to(root) else "out"
        raise ConfigError(f"{error.strerror}: {error.filename!r}", key=key) from error


def _source(kind: str, settings: Mapping[str, object]) -> Source:
    made = SOURCES[one_of("kind", kind, SOURCES, key="kind")]
    try:
        return made.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        allowed = ", ".join(field.alias or n for n, field in made.model_fields.items()) or "none"
        why = {
            "missing": f"kind {kind!r} needs it",
            "extra_forbidden": f"kind {kind!r} has no such setting; its settings: {allowed}",
        }.get(first["type"], f"{first['input']!r} is not allowed: {first['msg']}")
        raise ConfigError(why, key=key) from error


def _name(name: str, kind: str) -> str:
    if not TASK_NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name of a task made of kind {kind!r}; give one of letters, digits, "
            "- and _",
            key="name",
        )
    if name in PACKAGED:
        raise ConfigError(f"{name!r} is a task of the package; choose another name", key="name")
    return name
