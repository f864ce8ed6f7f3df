"""Programs of a deployment: started, looked after, ended with all that they have started."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from hffm_flower.errors import ConfigError, HffmError
from hffm_flower.session.bundle import ONE_THREAD, QUIET, search_path
from hffm_flower.session.echo import Echo
from hffm_flower.session.watchdog import MARK, sweep
from hffm_flower.session.worker import hurried

log = logging.getLogger(__name__)

HFFM = (sys.executable, "-c", "from hffm_flower.cli import main; main()")
"""This package's own command, wherever it is installed."""
GRACE_S = 8.0
"""How long programs may take to leave once asked to [s]."""
FIRST_RETRY_S = 1.0
"""Wait before a program that died is started again; doubles each time [s]."""
LONGEST_RETRY_S = 60.0
"""The longest such wait [s]."""
BAD_INPUT = 2
"""Exit code of a program that cannot work with what it was given; trying again is no use."""
STEADY_S = 120.0
"""A program that has lived so long is forgiven its earlier deaths [s]."""


@dataclass(frozen=True, slots=True)
class Program:
    """What is started.

    Attributes:
        name: For its log and for messages.
        argv: Command.
        restarts: How often it is started again, should it die.
        last: Whether it ends after the others, because they take their leave of it.
    """

    name: str
    argv: tuple[str, ...]
    restarts: int = 3
    last: bool = False


@dataclass(slots=True)
class _Entry:
    program: Program
    process: subprocess.Popen[bytes]
    since: float
    deaths: int = 0
    again: float | None = None
    given_up: bool = False
    starts: int = 1


class Processes:
    """A deployment's programs on this machine; leaving the context ends them all.

    Args:
        logs: Folder; each program's output goes to ``NAME.log`` there. None: to the terminal.
        environment: Added to each program's environment.
    """

    def __init__(self, logs: Path | None, environment: Mapping[str, str] | None = None) -> None:
        self.logs = logs
        self._extra = dict(environment or {})
        self._entries: dict[str, _Entry] = {}
        self._echoes: dict[str, Echo] = {}
        self._mark = uuid.uuid4().hex

    def __enter__(self) -> Self:
        if self.logs is not None:
            self.logs.mkdir(parents=True, exist_ok=True)
        self.scratch = Path(tempfile.mkdtemp(prefix="hffm-tree-"))
        (self.scratch / "tmp").mkdir()
        self._watchdog = subprocess.Popen(
            [sys.executable, "-m", "hffm_flower.session.watchdog", self._mark, str(self.scratch)],
            cwd=self.scratch, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.end()

    @property
    def environment(self) -> dict[str, str]:
        """What every program finds in its environment."""
        return {
            **os.environ, **QUIET, **ONE_THREAD, **self._extra, MARK: self._mark,
            "PATH": search_path(), "FLWR_HOME": str(self.scratch / "flower"),
            "TMPDIR": str(self.scratch / "tmp"), "PYTHONUNBUFFERED": "1",
        }  # fmt: skip

    def start(self, program: Program) -> None:
        """Start a program."""
        self._entries[program.name] = _Entry(program, self._begin(program), time.monotonic())
        log.info("%s started, pid %d", program.name, self._entries[program.name].process.pid)

    def _begin(self, program: Program) -> subprocess.Popen[bytes]:
        with contextlib.ExitStack() as stack:
            out, errors = None, subprocess.PIPE
            if self.logs is not None:
                out = stack.enter_context((self.logs / f"{program.name}.log").open("ab"))
                errors = subprocess.STDOUT
            process = subprocess.Popen(
                program.argv, cwd=self.scratch, env=self.environment, stdin=subprocess.DEVNULL,
                stdout=out, stderr=errors, start_new_session=True,
            )  # fmt: skip
        if process.stderr is not None:
            self._echoes[program.name] = Echo(process.stderr)
        return process

    def look_after(self) -> None:
        """Start again what has died, a few times; call it about twice a second."""
        now = time.monotonic()
        for entry in self._entries.values():
            if entry.given_up or entry.process.poll() is None:
                continue
            if entry.again is None:
                self._died(entry, now)
            elif now >= entry.again:
                entry.process, entry.since, entry.again = self._begin(entry.program), now, None
                entry.starts += 1
                log.info("%s started again, pid %d", entry.program.name, entry.process.pid)

    def _died(self, entry: _Entry, now: float) -> None:
        name, code = entry.program.name, entry.process.returncode
        entry.deaths = 1 if now - entry.since > STEADY_S else entry.deaths + 1
        if entry.deaths > entry.program.restarts or code == BAD_INPUT:
            entry.given_up = True
            log.error("%s died (code %d) and is given up: %s", name, code, self.tail(name))
            return
        wait_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** (entry.deaths - 1))
        entry.again = now + wait_s
        log.warning("%s died (code %d); started again in %.0f s", name, code, wait_s)

    def running(self, name: str) -> bool:
        """Whether a program is at work."""
        return name in self._entries and self._entries[name].process.poll() is None

    def given_up(self, name: str) -> bool:
        """Whether a program has died for good."""
        return name in self._entries and self._entries[name].given_up

    def loss(self, name: str) -> HffmError:
        """Why a program was given up: its input was bad, or it died too often."""
        code = self._entries[name].process.returncode
        why = self.tail(name, 1).removeprefix("error: ") or "it left no message"
        if code == BAD_INPUT:
            return ConfigError(f"{name} cannot work as it is set: {why}")
        return HffmError(f"{name} cannot be kept alive, it died with code {code}: {why}")

    def starts(self, name: str) -> int:
        """How often a program has been started."""
        return self._entries[name].starts if name in self._entries else 0

    def names(self) -> tuple[str, ...]:
        """Every program that was started."""
        return tuple(self._entries)

    def pid(self, name: str) -> int:
        """Process of a program."""
        return self._entries[name].process.pid

    def apps(self, name: str) -> list[psutil.Process]:
        """ServerApps at work under a SuperLink."""
        found: list[psutil.Process] = []
        if name not in self._entries:
            return found
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.pid(name)).children(recursive=True):
                if any("flwr-serverapp" in word for word in process.cmdline()):
                    found.append(process)
        return found

    def text(self, name: str) -> str:
        """What a program has printed to its log."""
        if self.logs is None or not (self.logs / f"{name}.log").exists():
            return ""
        return (self.logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def tail(self, name: str, lines: int = 3) -> str:
        """Last words of a program, also without a log."""
        if name in self._echoes:
            return " | ".join(self._echoes[name].last()[-lines:])
        return " | ".join(self.text(name).rstrip().split("\n")[-lines:])

    def end(self) -> None:
        """End everything; a second Ctrl-C meanwhile ends the patience, not the cleaning up."""
        with hurried() as hurry:
            until = time.monotonic() + GRACE_S
            for last in (False, True):
                going = [
                    e.process for e in self._entries.values()
                    if e.program.last is last and e.process.poll() is None
                ]  # fmt: skip
                for process in going:
                    process.terminate()
                while not hurry.is_set() and time.monotonic() < until:
                    if all(p.poll() is not None for p in going):
                        break
                    time.sleep(0.05)
            late = [n for n, e in self._entries.items() if e.process.poll() is None]
            log.info("ended; killed: %s", ", ".join(late) or "none")
            sweep(self._mark)
            for entry in self._entries.values():
                entry.process.wait()
            for echo in self._echoes.values():
                echo.last()
            shutil.rmtree(self.scratch, ignore_errors=True)
            stdin = self._watchdog.stdin
            if stdin is not None:
                with contextlib.suppress(OSError):
                    stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._watchdog.wait(timeout=30)


def listening(address: str) -> bool:
    """Whether somebody takes connections at ``HOST:PORT``."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=1.0):
            return True
    except OSError:
        return False


def free_addresses(number: int) -> Sequence[str]:
    """So many loopback addresses that nobody has now."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(number):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found.append(f"127.0.0.1:{probe.getsockname()[1]}")
        return found
