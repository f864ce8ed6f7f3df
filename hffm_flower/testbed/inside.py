"""Files of a container, read from outside it.

Whoever is inside can put anything there while it is looked at: links that would lead to files of
the host, pipes that never end, files without bounds. So no component of a path may be a link, and
only regular files are opened.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from hffm_flower.errors import ModuleError

MOST_BYTES: Final = 64 * 2**20
"""What is read of a file at most [byte]."""
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextlib.contextmanager
def open_folder(root: Path, folder: str) -> Iterator[int]:
    """A descriptor of a folder below ``root``, which may itself be a link.

    Raises:
        OSError: It is not there, or a component of ``folder`` is a link.
    """
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in PurePosixPath(folder.strip("/")).parts:
            if name == "..":
                raise NotADirectoryError(f"{folder!r} leads upwards")
            inner = os.open(name, _FOLDER, dir_fd=handle)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def open_file(root: Path, path: str) -> Iterator[BinaryIO]:
    """A regular file below ``root``.

    Raises:
        OSError: It is not there, is no regular file, or a component of ``path`` is a link.
    """
    place = PurePosixPath(path)
    with open_folder(root, str(place.parent)) as folder:
        handle = os.open(place.name, _FILE, dir_fd=folder)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{path!r} is no regular file")
        yield file


def read_file(root: Path, path: str) -> bytes:
    """The first `MOST_BYTES` of a regular file below ``root``.

    Raises:
        OSError: As of `open_file`.
    """
    with open_file(root, path) as file:
        return file.read(MOST_BYTES)


def round_of(root: Path, path: str) -> int:
    """The last edge round that is in an edge's state: `strategies.edge_state.saved_round`.

    Raises:
        OSError: As of `open_file`.
        ModuleError: It is no edge's state.
    """
    with open_file(root, path) as file:
        size = int.from_bytes(file.read(8), "little")  # of the header, by safetensors
        if size > MOST_BYTES:
            raise ModuleError(f"{path} has a header of {size} bytes; allowed: {MOST_BYTES}")
        try:
            return int(json.loads(json.loads(file.read(size))["__metadata__"]["edge"])["t"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ModuleError(f"{path} is no edge's state: {error}") from error
