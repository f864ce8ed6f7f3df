"""Entries of a large JSON file, one after the other: memory of one of them, not of the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TextIO, cast

from hffm_flower.errors import ConfigError

CHUNK: Final = 2**20  # characters read at a time
LONGEST: Final = 2**26  # characters of one entry; more is no annotation
SPACE: Final = re.compile(r"[ \t\r\n]*")


def entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and content of every entry: of an object its keys, of a list their positions.

    Raises:
        ConfigError: The file cannot be read, is damaged, or is not of this form.
    """
    name = ""
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = _Text(file)
            opening = text.next("{[")
            closing = "}" if opening == "{" else "]"
            separator = text.peek()
            position = 0
            while separator != closing:
                name = str(text.value('"')) if opening == "{" else str(position)
                if opening == "{":
                    text.next(":")
                yield name, cast("dict[str, Any]", text.value("{"))
                position += 1
                separator = text.next(f",{closing}")
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        place = f" (entry {name!r})" if name else ""
        raise ConfigError(
            f"{str(path)!r} cannot be read{place}: {why}; it must be JSON, a list or an object "
            "of annotations, each an object",
            key="root",
        ) from error


class _Text:
    """What is left of a file, with as much of it in memory as is needed."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._decode = file, json.JSONDecoder().raw_decode
        self._held = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            match = SPACE.match(self._held, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._held) or not self._more():
                return self._held[self._at : self._at + 1]

    def next(self, allowed: str) -> str:
        """Step over one character of ``allowed``."""
        found = self.peek()
        if not found or found not in allowed:
            raise ValueError(f"{found or 'the end'!r} where one of {allowed!r} must be")
        self._at += 1
        return found

    def value(self, opening: str) -> object:
        """Step over a value that begins with ``opening``."""
        found = self.peek()
        if found != opening:
            raise ValueError(f"{found or 'the end'!r} where {opening!r} must be")
        while True:
            try:
                content, self._at = self._decode(self._held, self._at)
            except ValueError:
                if len(self._held) - self._at > LONGEST or not self._more():
                    raise
            else:
                return content

    def _more(self) -> bool:
        chunk = self._file.read(CHUNK)
        self._held, self._at = self._held[self._at :] + chunk, 0
        return bool(chunk)
