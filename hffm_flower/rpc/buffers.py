"""Memory for payloads that is used again, for fresh pages cost more than filling them."""

from __future__ import annotations

import threading
import weakref
from typing import Final

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

ALIGN: Final = 2**16
"""Sizes are rounded up to this [byte], so that similar payloads share a buffer."""


class Buffers:
    """Buffers that come back by themselves once nothing looks at them any more.

    Args:
        kept_bytes: At most so much stays allocated while unused.

    Attributes:
        unused: What is kept for payloads to come.
    """

    def __init__(self, kept_bytes: int) -> None:
        self._most = kept_bytes
        self.unused: list[Bytes] = []
        self._lock = threading.RLock()  # views may die while it is held

    def take(self, size: int) -> memoryview:
        """A writable buffer of ``size`` bytes; views of it keep it."""
        with self._lock:
            fits = [b for b in self.unused if size <= b.size <= 2 * size + ALIGN]
            buffer = min(fits, key=lambda b: b.size, default=None)
            if buffer is not None:
                self.unused = [b for b in self.unused if b is not buffer]
        if buffer is None:
            buffer = np.empty(-(-size // ALIGN) * ALIGN, np.uint8)
        lent = buffer[:size]
        weakref.finalize(lent, self._give_back, buffer).atexit = False
        return lent.data

    def _give_back(self, buffer: Bytes) -> None:
        with self._lock:
            if sum(b.size for b in self.unused) + buffer.size <= self._most:
                self.unused.append(buffer)
