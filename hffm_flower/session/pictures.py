"""Where pictures go: checked before they are drawn, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hffm_flower.errors import OutputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_NAME = 200
"""Bytes of a file's name; file systems take 255, of which a part of it needs some."""


def check_picture(path: Path) -> Path:
    """Refuse a path that no PNG can be written to, and make its folder.

    Raises:
        OutputError: It is no ``.png``, is a folder, or its folder cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise OutputError(f"a picture is written as .png, not to {str(path)!r}")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise OutputError(f"the name of {str(path)!r:.80} is longer than {LONGEST_NAME} bytes")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise OutputError(f"{str(path)!r} cannot be written")
    except (OSError, ValueError) as error:
        raise OutputError(f"{str(path)!r} cannot be written: {error}") from error
    return path


def save_picture(figure: Figure, path: Path) -> Path:
    """Write ``figure`` as PNG and forget it; what was there before stays until it is whole.

    Raises:
        OutputError: The path cannot be written.
    """
    from matplotlib import pyplot as plt

    part = path.with_suffix(".part.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(part, dpi=110)
        part.replace(path)
    except OSError as error:
        raise OutputError(f"{str(path)!r} cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)
        plt.close(figure)
    return path
