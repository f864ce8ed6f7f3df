"""The folder of a new run: which one it is, and its claim. Needs no torch and no data."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from hffm_flower.config import RunConfig, located
from hffm_flower.errors import ConfigError
from hffm_flower.runfiles import RunFiles


def take_folder(config: RunConfig, out: Path | None, *, origin: str) -> RunFiles:
    """A folder for a new run: ``out``, which came from ``origin``, else `default_folder`.

    It is claimed until the run has ended.

    Raises:
        OutputError: It cannot be used; the message says where its name came from.
    """
    try:
        return RunFiles.claim(default_folder(config) if out is None else out.expanduser())
    except ConfigError as error:
        named = config.locate(error) if out is None else located(error, {error.key: origin})
        raise named from error


def default_folder(config: RunConfig) -> Path:
    """``paths.out``, else a new ``runs/<date>-<time>`` here."""
    if config.paths.out:
        return Path(config.paths.out).expanduser()
    first = Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    others = (first.with_name(f"{first.name}-{n}") for n in itertools.count(2))
    return next(path for path in itertools.chain([first], others) if not path.exists())
