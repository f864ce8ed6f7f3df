"""Files of the model hub: from its cache, and from the hub where they are not there."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from huggingface_hub import (
    constants,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import RemoteEntryNotFoundError

from hffm_flower.errors import ConfigError

CONFIG: Final = "config.json"
SMALL: Final = ("*.json", "*.txt", "*.model", "*.jinja")
"""What comes from the hub at once; weights come when they are read."""


def hub_folder(source: str, repository: str, revision: str | None, *, key: str) -> Path:
    """Folder of a model in the hub's cache; small files are brought there if there are none."""
    try:
        held = try_to_load_from_cache(repository, CONFIG, revision=revision)
    except ValueError as error:
        raise ConfigError(f"{source!r} is no model of the hub: {error}", key=key) from error
    if isinstance(held, str):
        return Path(held).parent
    with _asking(source, (CONFIG,), key):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[*SMALL]))


@contextlib.contextmanager
def _asking(source: str, names: Collection[str], key: str) -> Iterator[None]:
    """Say what could not be had from the hub, why, and how to get it.

    Raises:
        ConfigError: The hub could not be asked, or refused.
        RemoteEntryNotFoundError: It has no such file.
    """
    try:
        yield
    except RemoteEntryNotFoundError:
        raise
    except (OSError, ValueError) as error:
        repository, _, revision = source.partition("@")
        at = f" --revision {revision}" if revision else ""
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else " ".join(str(error).split())
        raise ConfigError(
            f"checkpoint {source!r} lacks {' or '.join(names)}: not in the hub's cache "
            f"{constants.HF_HUB_CACHE}, and the hub does not give it ({why}); get it with: "
            f"hf download {repository}{at}, or name a folder that holds it",
            key=key,
        ) from error


def hub_file(
    source: str, repository: str, revision: str, names: Collection[str], *, key: str
) -> Path:
    """The first of ``names`` that the hub has.

    Raises:
        ConfigError: It has none, or cannot be asked.
    """
    for name in names:
        with contextlib.suppress(RemoteEntryNotFoundError), _asking(source, names, key):
            return Path(hf_hub_download(repository, name, revision=revision))
    raise ConfigError(f"checkpoint {source!r} has no {' or '.join(names)} in the hub", key=key)
