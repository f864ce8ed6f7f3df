"""A process that speaks: eSpeak NG, every utterance in a fork of a fresh library.

The library's output depends on what it has said before, so each utterance begins with the
state that the library has right after it was loaded. Run by `hffm_flower.data.espeak` as a
script, with nothing of this package: ``python espeak_voice.py LIBRARY DATA_FOLDER``.

In: lines of JSON, ``[voice, rate, pitch, text]``. Out: for each an int32, the number of
samples or -1 for a voice that is not there, then int16 samples. The first int32 is the rate
of sampling [Hz].
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

_SYNCHRONOUS, _UTF8, _RATE, _PITCH = 2, 1, 1, 3  # of espeak-ng's speak_lib.h
_LONGEST_S = 20


def main(library_path: str, data: str) -> None:
    """Answer requests until there are no more."""
    library = ctypes.CDLL(library_path)
    sampling = library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), 0)
    out = sys.stdout.buffer
    out.write(struct.pack("<i", sampling))
    out.flush()
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(_LONGEST_S)  # nobody waits for it any more
            with os.fdopen(write, "wb") as pipe:
                pipe.write(_spoken(library, *json.loads(line)))
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            samples = pipe.read()
        _, status = os.waitpid(child, 0)
        good = status == 0 and samples
        out.write(struct.pack("<i", len(samples) // 2 if good else -1) + (samples if good else b""))
        out.flush()


def _spoken(library: Any, voice: str, rate: int, pitch: int, text: str) -> bytes:
    parts: list[bytes] = []
    kind = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
    )

    def take(samples: Any, count: int, events: object) -> int:
        if samples and count > 0:
            parts.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback: Callable[..., int] = kind(take)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        return b""
    library.espeak_SetParameter(_RATE, rate, 0)
    library.espeak_SetParameter(_PITCH, pitch, 0)
    words = text.encode() + b"\0"
    library.espeak_Synth(words, len(words), 0, 1, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    return b"".join(parts)


if __name__ == "__main__":
    main(*sys.argv[1:])
