"""A device's own data: what its TOML file names instead of a share of the packaged data.

The file has a table for each task, ``[data.TASK]``, with the ``kind`` of its folder, the
``path`` and the settings of that kind; other tables of the file are read by others.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from hffm_flower.config import located, read_toml
from hffm_flower.data.own_hub import HubKind
from hffm_flower.data.own_images import ImageCsv
from hffm_flower.data.own_series import SeriesCsv
from hffm_flower.data.own_task import OwnKind, OwnTask
from hffm_flower.errors import ConfigError, one_of
from hffm_flower.profile import NodeProfile
from hffm_flower.seeding import generator
from hffm_flower.tasks import TASKS, spec_of

KINDS: Final[Mapping[str, type[OwnKind]]] = {
    "hf-datasets": HubKind,
    "image-csv": ImageCsv,
    "series-csv": SeriesCsv,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OwnData:
    """All that a device brings to a run.

    Attributes:
        path: The file that names it.
        tasks: Task -> its examples, in the order of the run's tasks.
    """

    path: Path
    tasks: Mapping[str, OwnTask]

    def profile(self, index: int) -> NodeProfile:
        """Profile of the device, whose test examples are its shard of both test splits."""
        tests = {t: len(own.rows("test")) for t, own in self.tasks.items()}
        return NodeProfile(
            index=index,
            modalities=tuple(sorted({m for own in self.tasks.values() for m in own.inputs})),
            tasks={t: len(own.rows("train")) for t, own in self.tasks.items()},
            wanted=tuple(self.tasks),
            tests={t: count for t, count in tests.items() if count},
        )

    def skipped(self) -> dict[str, dict[str, int]]:
        """Task -> reason -> examples that are not used; tasks that use all are left out."""
        counts = {t: dict(sorted(own.skipped.counts.items())) for t, own in self.tasks.items()}
        return {t: c for t, c in counts.items() if c}

    def report(self) -> dict[str, dict[str, int]]:
        """`skipped`; the log gets the first few names too, which stay on this device."""
        for task, own in self.tasks.items():
            for line in own.skipped.lines():
                log.warning("%s: task %r: left out %s", self.path, task, line)
        return self.skipped()

    def refuse(self, error: ConfigError) -> ConfigError:
        """The error with its key and this file in front."""
        return located(error, {error.key: str(self.path)})


def read_own(path: Path, *, tasks: Collection[str], served: Collection[str], seed: int) -> OwnData:
    """Read the file of a device, and all that it names.

    Args:
        path: TOML file.
        tasks: The run's tasks; others that the file names are left out.
        served: Modalities that the run's encoders read; others are not used.
        seed: The run's seed, which draws the test examples.

    Raises:
        ConfigError: The file, or a folder that it names, is not as it should be; the message
            names setting, value and what is allowed.
    """
    tables = _tables(path)
    read: dict[str, OwnTask] = {}
    for task, table in tables.items():
        try:
            spec_of(task, key=f"data.{task}")
            kind, folder = _kind(task, table), _folder(task, table, path)
            if task not in tasks:
                log.warning("%s: task %r is not one of this run's", path, task)
                continue
            _check_served(task, served)
            own = kind.read(task, folder, generator(seed, "own", task))
        except ConfigError as error:
            raise located(error, {error.key: str(path)}) from error
        usable = {m: items for m, items in own.inputs.items() if m in served}
        read[task] = OwnTask(task, usable, own.answers, own.test, own.skipped)
    if not read:
        raise located(
            ConfigError(
                f"none of {', '.join(tables)} is a task of this run; its tasks: {', '.join(tasks)}",
                key="data",
            ),
            {"data": str(path)},
        )
    return OwnData(path, {t: read[t] for t in tasks if t in read})


def _tables(path: Path) -> Mapping[str, Mapping[str, Any]]:
    tables = read_toml(path, "the device's file").get("data")
    if not isinstance(tables, dict) or not tables:
        raise ConfigError(f"{path} has no table [data.TASK]; tasks: {', '.join(TASKS)}", key="data")
    for task, table in tables.items():
        if not isinstance(table, dict):
            raise located(
                ConfigError(
                    f"{table!r} is no table; write [data.TASK] with kind and path",
                    key=f"data.{task}",
                ),
                {f"data.{task}": str(path)},
            )
    return tables


def _kind(task: str, table: Mapping[str, Any]) -> OwnKind:
    """Settings of a task's folder, checked."""
    key = f"data.{task}.kind"
    name = one_of("kind", str(table.get("kind", "")), KINDS, key=key)
    need = set(TASKS[task].required)
    if lost := sorted(need - set(KINDS[name].modalities)):
        able = [n for n, kind in KINDS.items() if need <= set(kind.modalities)]
        raise ConfigError(
            f"{name!r} gives {' and '.join(KINDS[name].modalities)}, but task {task!r} needs "
            f"{', '.join(lost)}; kinds that give it: {', '.join(able) or 'none'}",
            key=key,
        )
    if not TASKS[task].answers and TASKS[task].head not in KINDS[name].heads:
        able = [n for n, kind in KINDS.items() if TASKS[task].head in kind.heads]
        raise ConfigError(
            f"{name!r} does not read what task {task!r} asks for ({TASKS[task].head}); kinds that "
            f"do: {', '.join(able) or 'none'}",
            key=key,
        )
    try:
        return KINDS[name].model_validate(table)
    except ValidationError as error:
        raise _explained(error, task, KINDS[name]) from error


def _folder(task: str, table: Mapping[str, Any], path: Path) -> Path:
    folder = path.parent / Path(str(table["path"])).expanduser()
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise ConfigError(
            f"{table['path']!r} {what}; it must be a folder, relative to {str(path.parent)!r}",
            key=f"data.{task}.path",
        )
    return folder


def _check_served(task: str, served: Collection[str]) -> None:
    if lost := sorted(set(TASKS[task].required) - set(served)):
        raise ConfigError(
            f"it needs {', '.join(lost)}, which no encoder of this run reads; they read: "
            f"{', '.join(sorted(served)) or 'nothing'}",
            key=f"data.{task}",
        )


def _explained(error: ValidationError, task: str, kind: type[OwnKind]) -> ConfigError:
    first = error.errors()[0]
    name = str(first["loc"][0])
    names = [field.alias or n for n, field in kind.model_fields.items()]
    why = {
        "missing": f"is missing; settings: {', '.join(names)}",
        "extra_forbidden": f"unknown setting; allowed: {', '.join(names)}",
    }.get(first["type"], f"{first['input']!r} is not allowed: {first['msg']}")
    return ConfigError(why, key=f"data.{task}.{name}")
