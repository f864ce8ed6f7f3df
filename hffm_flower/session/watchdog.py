"""The process that cleans up when a deployment's own process cannot.

``python -m hffm_flower.session.watchdog MARK FOLDER``: waits until its standard input closes,
which happens however the process at the other end goes, then ends every process that carries
the mark and removes the folder.

The mark is a variable in the environment of everything that was started: Flower's programs
start others in sessions of their own, and these too inherit it.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import time

import psutil

MARK = "HFFM_TREE"
"""Environment variable that says to which deployment a process belongs."""
LONGEST_S = 20.0
"""How long processes are looked for that others go on starting [s]."""


def marked(mark: str) -> list[psutil.Process]:
    """Every live process that carries the mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def sweep(mark: str) -> int:
    """Kill every process that carries the mark, until there is none; how many there were."""
    ended, until = 0, time.monotonic() + LONGEST_S
    while (left := marked(mark)) and time.monotonic() < until:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        gone, _ = psutil.wait_procs(left, timeout=2)
        ended += len(gone)
    return ended


def main(mark: str, folder: str) -> None:
    """Wait, then clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # its standard input says when
    while sys.stdin.buffer.read(4096):
        pass
    sweep(mark)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
