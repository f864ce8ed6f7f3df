"""What a program says on standard error: handed on to ours, its last lines remembered."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from typing import IO

REMEMBERED = 5
"""So many lines are remembered."""
LONGEST = 1 << 16
"""Longer lines are handed on in parts [bytes]."""
DRAIN_S = 2.0
"""How long the last words of a program that ended may take to come through [s]."""


class Echo:
    """Reads in a thread of its own, until all who write have ended.

    Args:
        pipe: Other end of the program's standard error; closed at the end.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self._last: deque[str] = deque(maxlen=REMEMBERED)
        self._thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._thread.start()

    def last(self) -> list[str]:
        """The last lines of a program that has ended, without empty ones."""
        self._thread.join(DRAIN_S)
        return list(self._last)

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in iter(lambda: pipe.readline(LONGEST), b""):
                text = line.decode("utf-8", errors="replace")
                if text.strip():
                    self._last.append(text.strip())
                with contextlib.suppress(OSError, ValueError):  # ours may be closed
                    sys.stderr.write(text)
                    sys.stderr.flush()
