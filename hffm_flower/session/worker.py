"""The child process that works through a run, seen from its parent.

Ray and Flower keep threads, sockets and processes; a process of its own is the one thing
that can be ended with all of them, however a run ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError, HffmError, Interrupted
from hffm_flower.runfiles import LOG
from hffm_flower.session.bundle import ONE_THREAD

CHILD = "hffm_flower.session.child"
LONGEST_TMPDIR = 35
"""Ray's socket paths add about 65 bytes to the folder; some systems allow 103 in all."""
GRACE_S = 30.0
"""How long a child may take to save and end once asked to [s]."""

Show = Callable[[Mapping[str, object]], None]


def work(configs: Sequence[RunConfig], root: Path, show: Show) -> None:
    """Work through runs in one child process, and end all that it started.

    Args:
        configs: The runs, with absolute paths; each writes the folder ``paths.out``.
        root: Folder of the log.
        show: Told of progress.

    Raises:
        HffmError: A run ended early.
    """
    with tempfile.TemporaryDirectory(
        prefix="hffm-", dir=_short_folder(), ignore_cleanup_errors=True
    ) as scratch:
        worker = Worker(configs, root, scratch)
        try:
            failure = worker.follow(show)
            code = worker.process.wait()
        except KeyboardInterrupt:
            show({"event": "stopping"})
            raise
        finally:
            worker.end()
    if failure is not None:
        raise failure
    if code != 0:
        raise HffmError(
            f"the run's process ended with code {code}, or a process of Ray was lost (is there "
            f"enough memory? was one killed?); "
            f"its log: {root / LOG}"
        )


class Worker:
    """A child process, its events, and every process that it has started.

    Args:
        configs: The runs.
        root: Folder of the log; also the child's working directory, so that no stray
            ``clients/`` or ``queue.py`` of the user's folder is imported.
        scratch: Folder for sockets.
    """

    def __init__(self, configs: Sequence[RunConfig], root: Path, scratch: str) -> None:
        receive, send = os.pipe()
        with (root / LOG).open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", CHILD, scratch],
                cwd=root,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(send,),
                env=_environment(send),
                start_new_session=True,
            )
        os.close(send)
        self._tree: set[psutil.Process] = set()
        self._events: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, args=(os.fdopen(receive),), daemon=True).start()
        self._tell(json.dumps([c.to_flwr() for c in configs]).encode() + b"\n")

    def follow(self, show: Show) -> HffmError | None:
        """Hand events to ``show`` until the child has ended; what it failed with, if it did."""
        failure: HffmError | None = None
        while True:
            self._watch_tree()
            try:
                line = self._events.get(timeout=0.5)
            except queue.Empty:
                if self.process.poll() is not None:
                    return failure
                continue
            if line is None:
                return failure
            event = json.loads(line)
            if event["event"] == "error":
                failure = HffmError(event["reason"])
            elif event["event"] == "stopped":
                failure = Interrupted(event["reason"])
            show(event)

    def end(self) -> None:
        """Ask the child to stop, wait, then end whatever of its tree is left.

        A second Ctrl-C meanwhile ends the wait, not the cleaning up.
        """
        with hurried() as hurry:
            self._watch_tree()
            self._tell(None)
            until = time.monotonic() + GRACE_S
            while self.process.poll() is None and time.monotonic() < until and not hurry.is_set():
                self._watch_tree()
                time.sleep(0.1)
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            _, left = psutil.wait_procs(self._tree, timeout=0 if hurry.is_set() else 3)
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=5)

    def _watch_tree(self) -> None:
        """Remember the child's descendants: when it is gone nobody can name them."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._tree.update(psutil.Process(self.process.pid).children(recursive=True))

    def _tell(self, words: bytes | None) -> None:
        """Write to the child's standard input, or close it."""
        stdin = self.process.stdin
        if stdin is not None:
            with contextlib.suppress(BrokenPipeError, ValueError):
                if words is None:
                    stdin.close()
                else:
                    stdin.write(words)
                    stdin.flush()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._events.put(line)
        self._events.put(None)


def _short_folder() -> str | None:
    """Folder for Ray's sockets, whose paths must be short; None: the usual one."""
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) <= LONGEST_TMPDIR:
        return None
    if os.access("/tmp", os.W_OK):
        return "/tmp"
    raise ConfigError(
        f"the temporary folder {usual!r} is too long for Ray's sockets; set TMPDIR to one of "
        f"at most {LONGEST_TMPDIR} bytes"
    )


def _environment(events_fd: int) -> dict[str, str]:
    quiet = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONSAFEPATH": "1",
    }
    return {**quiet, **os.environ, **ONE_THREAD, "HFFM_EVENTS": str(events_fd)}


@contextlib.contextmanager
def hurried() -> Iterator[threading.Event]:
    """Meanwhile Ctrl-C, SIGTERM and SIGHUP set an event instead of raising."""
    hurry = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield hurry
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.signal(n, lambda signum, frame: hurry.set()) for n in numbers}
    try:
        yield hurry
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
