"""``run(config)``: check, work in a child process, and hand back the result."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from hffm_flower.config import RunConfig
from hffm_flower.errors import HffmError, Interrupted
from hffm_flower.modules import ModuleKey, ModuleState
from hffm_flower.records import write_state
from hffm_flower.report import RoundReport
from hffm_flower.runfiles import RunFiles
from hffm_flower.session.preflight import Plan, check

CHILD = "hffm_flower.session.child"
GRACE_S = 30.0
"""How long a child may take to save and end once asked to [s]."""

Show = Callable[[Mapping[str, object]], None]


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: Where its files are.
        result: Content of ``result.json``.
        rounds: One report per edge round.
    """

    folder: Path
    result: Mapping[str, object]
    rounds: tuple[RoundReport, ...]

    @property
    def summary(self) -> Mapping[str, object]:
        """Closing figures: ``mean_global``, ``per_task``, ``chance`` and more."""
        summary = self.result["summary"]
        assert isinstance(summary, Mapping)
        return summary

    @property
    def mean_global(self) -> float:
        """Mean IID accuracy over the classification tasks, after the last edge round."""
        return float(str(self.summary["mean_global"]))


def run(
    config: RunConfig | None = None, *, out: str | Path | None = None, show: Show | None = None
) -> RunResult:
    """Run a federation on this machine and return its result.

    Args:
        config: Settings; default: all defaults.
        out: Folder for the results; default: ``paths.out``, else ``runs/<date>-<time>``.
        show: Told of progress, for a display.

    Raises:
        ConfigError: A setting cannot work; nothing was started.
        AssetError: An asset is missing or altered; nothing was started.
        HffmError: The run ended early; the folder holds what was finished.
    """
    config = RunConfig.from_flwr((config or RunConfig()).to_flwr())
    plan = check(config)
    files = RunFiles.create(Path(out) if out else default_folder(config))
    return execute(config, plan, files, show or (lambda event: None))


def default_folder(config: RunConfig) -> Path:
    """``paths.out``, else a new ``runs/<date>-<time>`` here."""
    if config.paths.out:
        return Path(config.paths.out)
    first = Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    others = (first.with_name(f"{first.name}-{n}") for n in itertools.count(2))
    return next(path for path in itertools.chain([first], others) if not path.exists())


def execute(config: RunConfig, plan: Plan, files: RunFiles, show: Show) -> RunResult:
    """Work through a checked run in a child process."""
    from hffm_flower.session.plots import draw_curves

    state = files.root.resolve() / ".state"
    config = config.with_values(paths__state=str(state), paths__out=str(files.root.resolve()))
    try:
        _work(config, files, show)
    finally:
        _export_devices(config, plan, files, state)
        if files.rounds():
            draw_curves(files)
    return RunResult(files.root, files.result(), tuple(files.rounds()))


def _work(config: RunConfig, files: RunFiles, show: Show) -> None:
    config_file = files.root / ".config.json"
    config_file.write_text(json.dumps(config.to_flwr()), encoding="utf-8")
    try:
        with (
            tempfile.TemporaryDirectory(prefix="hffm-", ignore_cleanup_errors=True) as scratch,
            _child(config_file, files, scratch) as (child, events),
        ):
            failure = _follow(child, events, show)
            code = child.wait()
    finally:
        config_file.unlink(missing_ok=True)
    if failure is not None:
        raise failure
    if code != 0:
        raise HffmError(
            f"the run's process ended with code {code}; its log: {files.root / 'run.log'}"
        )


def _follow(
    child: subprocess.Popen[bytes], events: queue.Queue[str | None], show: Show
) -> HffmError | None:
    """Hand events to ``show`` until the child has ended; what it failed with, if it did."""
    failure: HffmError | None = None
    while True:
        try:
            line = events.get(timeout=0.5)
        except queue.Empty:
            if child.poll() is not None and events.empty():
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


@contextlib.contextmanager
def _child(
    config_file: Path, files: RunFiles, scratch: str
) -> Iterator[tuple[subprocess.Popen[bytes], queue.Queue[str | None]]]:
    """A child process that is gone when this ends, with all that it started."""
    receive, send = os.pipe()
    with (files.root / "run.log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", CHILD, str(config_file), str(files.root), scratch],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(send,),
            env=_environment(send),
            start_new_session=True,
        )
    os.close(send)
    events: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(os.fdopen(receive), events), daemon=True).start()
    try:
        yield child, events
    finally:
        _end(child)


def _environment(events_fd: int) -> dict[str, str]:
    quiet = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {**quiet, **os.environ, "HFFM_EVENTS": str(events_fd)}


def _read(stream: IO[str], events: queue.Queue[str | None]) -> None:
    with stream:
        for line in stream:
            events.put(line)
    events.put(None)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ask the child to stop, wait, then end whatever of its tree is left."""
    try:
        tree = psutil.Process(child.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        tree = []
    if child.stdin is not None:
        child.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)
    if child.poll() is None:
        tree += psutil.Process(child.pid).children(recursive=True)
        child.kill()
        child.wait()
    _, left = psutil.wait_procs(tree, timeout=5)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5)


def _export_devices(config: RunConfig, plan: Plan, files: RunFiles, state: Path) -> None:
    """Copy each device's own modules into the run's folder; drop the working state."""
    from clients.store import DeviceStore

    roots = [p for p in state.glob("*") if p.is_dir()]
    for profile in plan.profiles:
        own: dict[ModuleKey, ModuleState] = {}
        for root in roots:
            own = dict(DeviceStore(root, profile.index).read(config.rounds + 1)) or own
        write_state(files.device(profile.index), own)
    shutil.rmtree(state, ignore_errors=True)
