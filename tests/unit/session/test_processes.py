"""Programs are started again when they die, and end with all that they have started."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from hffm_flower.errors import ConfigError
from hffm_flower.session import processes as module
from hffm_flower.session import worker
from hffm_flower.session.bundle import ONE_THREAD
from hffm_flower.session.processes import Processes, Program, free_addresses, listening

SLEEP = "import time; time.sleep(600)"
NEST = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); "
PARENT = """
import sys, time
from pathlib import Path
from hffm_flower.session.processes import Processes, Program
with Processes(Path(sys.argv[1])) as them:
    them.start(Program("nest", (sys.executable, "-c", sys.argv[2])))
    print(them.scratch, flush=True)
    time.sleep(600)
"""


def python(name: str, code: str, restarts: int = 3) -> Program:
    return Program(name, (sys.executable, "-c", code), restarts)


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def looked_after(them: Processes, name: str) -> bool:
    """Look after them once; whether one of them has been given up."""
    them.look_after()
    return them.given_up(name)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_the_end_takes_children_in_sessions_of_their_own_along(tmp_path: Path) -> None:
    with Processes(tmp_path) as them:
        them.start(python("nest", NEST))
        until(lambda: them.text("nest"))
        child, scratch = int(them.text("nest")), them.scratch
        assert psutil.pid_exists(child)
    assert gone(child)
    assert not scratch.exists()


def test_one_that_does_not_listen_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.5)
    with Processes(tmp_path) as them:
        them.start(python("deaf", DEAF + SLEEP))
        until(lambda: them.text("deaf"))
        pid = them.pid("deaf")
    assert gone(pid)


def test_a_killed_parent_leaves_nothing_behind(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), NEST], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout:
        scratch = Path(parent.stdout.readline().strip())
    until(lambda: (tmp_path / "nest.log").exists() and (tmp_path / "nest.log").read_text())
    child = int((tmp_path / "nest.log").read_text())
    parent.kill()
    parent.wait()
    until(lambda: gone(child) and not scratch.exists())


def test_the_dead_are_started_again_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_RETRY_S", 0.01)
    with Processes(tmp_path) as them:
        them.start(python("short", "print('lived', flush=True)", restarts=2))
        until(lambda: looked_after(them, "short"))
        assert them.starts("short") == 3
        assert them.text("short").count("lived") == 3
        assert not them.running("short")


@pytest.mark.parametrize("logs", [True, False])
def test_bad_input_is_not_tried_again(
    logs: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; print('error: no such key', file=sys.stderr); sys.exit(2)"
    with Processes(tmp_path if logs else None) as them:
        them.start(python("fussy", code, restarts=1000))
        until(lambda: looked_after(them, "fussy"))
        assert them.starts("fussy") == 1
        loss = them.loss("fussy")
    assert isinstance(loss, ConfigError)
    assert str(loss) == "fussy cannot work as it is set: no such key"
    assert ("error: no such key" in capsys.readouterr().err) is not logs


def test_the_reason_of_one_that_died_too_often(tmp_path: Path) -> None:
    with Processes(None) as them:
        them.start(python("weak", "import sys; sys.exit('out of\\nluck')", restarts=0))
        until(lambda: looked_after(them, "weak"))
        loss = them.loss("weak")
    assert not isinstance(loss, ConfigError)
    assert str(loss) == "weak cannot be kept alive, it died with code 1: luck"


def test_the_wait_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [1000.0]
    starts: list[float] = []
    with Processes(tmp_path) as them:
        monkeypatch.setattr(them, "_begin", lambda program: Dead())
        monkeypatch.setattr("hffm_flower.session.processes.time.monotonic", lambda: now[0])
        them.start(python("mayfly", "", restarts=5000))
        for _ in range(3000):
            them.look_after()
            if them.starts("mayfly") > len(starts):
                starts.append(now[0])
            now[0] += 20
        monkeypatch.undo()
        them._entries.clear()
    gaps = [b - a for a, b in pairwise(starts)]
    assert len(starts) > 500
    assert max(gaps) <= 100


class Dead:
    """A process that is dead at once."""

    returncode = pid = 1

    def poll(self) -> int:
        return 1


def test_temporary_files_go_with_the_tree(tmp_path: Path) -> None:
    code = "import tempfile; print(tempfile.mkdtemp(), flush=True)"
    with Processes(tmp_path) as them:
        them.start(python("temporary", code))
        until(lambda: them.text("temporary"))
        folder = Path(them.text("temporary").strip())
        assert them.scratch in folder.parents
    assert not folder.exists()


def test_free_addresses_differ_and_nobody_listens() -> None:
    found = free_addresses(20)
    assert len(set(found)) == 20
    assert not any(map(listening, found))


def test_every_program_computes_linear_algebra_in_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the user's environment says: other numbers of threads give other bits."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    simulated = worker._environment(3)
    with Processes(tmp_path / "logs") as them:
        for name, value in ONE_THREAD.items():
            assert them.environment[name] == simulated[name] == value == "1"
