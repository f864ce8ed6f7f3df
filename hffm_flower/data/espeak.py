"""Synthetic speech by eSpeak NG, the same bits every time.

The library (GPL-3) comes with the optional package espeakng-loader; it is called in a
process of its own.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from hffm_flower.assets import asset_root
from hffm_flower.errors import AssetError

LIBRARY: Final = "libespeak-ng.so"
SCRIPT: Final = Path(__file__).with_name("espeak_voice.py")
PATIENCE_S: Final = 30.0
"""How long one utterance may take [s]; it takes some 10 ms."""


class Espeak:
    """Speaks; for several threads.

    Raises:
        AssetError: The package is missing or altered, or its library does not start.
    """

    def __init__(self) -> None:
        self._root = asset_root("espeak-ng")
        self._lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self._sampling = 0

    @classmethod
    @cache
    def shared(cls) -> Self:
        """One for the whole process."""
        one = cls()
        atexit.register(one.close)
        return one

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, text: str, *, voice: str, rate: int, pitch: int) -> tuple[NDArray[np.int16], int]:
        """Samples [time], and their rate [Hz].

        Args:
            text: English.
            voice: Accent and variant, e.g. ``en-us+f1``.
            rate: Speed [words/min].
            pitch: 0 to 99.

        Raises:
            AssetError: There is no such voice, or the library's process is gone.
        """
        with self._lock:
            try:
                return self._ask(json.dumps([voice, rate, pitch, text]))
            except (OSError, EOFError, TimeoutError) as error:
                self.close()
                raise AssetError(f"eSpeak NG did not say {text!r}: {error}") from error

    def _ask(self, request: str) -> tuple[NDArray[np.int16], int]:
        until = time.monotonic() + PATIENCE_S
        process = self.process
        if process is None or process.poll() is not None:
            self.close()
            process = self._begin(until)
        assert process.stdin is not None
        process.stdin.write(request.encode() + b"\n")
        process.stdin.flush()
        count = struct.unpack("<i", self._read(process, 4, until))[0]
        if count < 0:
            raise AssetError(f"eSpeak NG cannot speak {request}")
        return np.frombuffer(self._read(process, 2 * count, until), "<i2"), self._sampling

    def _begin(self, until: float) -> subprocess.Popen[bytes]:
        self.process = process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(self._root / LIBRARY), str(self._root)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        self._sampling = struct.unpack("<i", self._read(process, 4, until))[0]
        if self._sampling <= 0:
            raise OSError("its library does not start")
        return process

    def _read(self, process: subprocess.Popen[bytes], size: int, until: float) -> bytes:
        assert process.stdout is not None
        data = b""
        while len(data) < size:
            left_s = max(0.0, until - time.monotonic())
            if not select.select([process.stdout], [], [], left_s)[0]:
                raise TimeoutError(f"no answer for {PATIENCE_S:.0f} s")
            part = os.read(process.stdout.fileno(), size - len(data))
            if not part:
                raise EOFError("its process ended")
            data += part
        return data

    def close(self) -> None:
        """End the process; it is started again when it is needed."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None
