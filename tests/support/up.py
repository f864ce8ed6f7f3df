"""A running ``hffm up`` in a folder of its own, and what it leaves behind."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from hffm_flower.session.processes import listening
from tests.support.deployment import HFFM, ROOT

PATIENCE_S = 900.0


def set_words(settings: Mapping[str, object]) -> list[str]:
    """``--set`` options."""
    return [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]


def bits(run: Path) -> dict[str, bytes]:
    """All saved modules of a run."""
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*.safetensors")}


def simulate(folder: Path, *words: str) -> Path:
    """The folder of a finished ``hffm run``."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [*HFFM, "run", *words, "--out", "run", "--actors", "1"], cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HFFM_CACHE": str(folder / "cache")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


class Up:
    """A running ``hffm up``, or another command that brings a tree up."""

    def __init__(self, folder: Path, *words: str, command: str = "up") -> None:
        self.run, self.temporary = folder / "run", folder / "tmp"
        self.temporary.mkdir()
        self.cache = folder / "cache"
        self.said = folder / "said.log"
        with self.said.open("wb") as out:
            self.process = psutil.Popen(
                [*HFFM, command, *words, "--out", str(self.run)], cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "HFFM_CACHE": str(self.cache),
                     "TMPDIR": str(self.temporary), "COLUMNS": "150",
                     "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")},  # made by import peft
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip

    def wait(self) -> int:
        return int(self.process.wait(timeout=PATIENCE_S))

    def until(self, name: str, pattern: str) -> re.Match[str]:
        """Wait until a file of the run holds a text."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and self.process.poll() is None:
            if (self.run / name).exists():
                found = re.search(pattern, (self.run / name).read_text(errors="replace"))
                if found is not None:
                    return found
            time.sleep(0.1)
        raise AssertionError(f"no {pattern!r} in {name}: {self.said.read_text()}{self.log()}")

    def log(self) -> str:
        return (self.run / "run.log").read_text()

    def of_it(self) -> list[psutil.Process]:
        """Processes that this command has started, wherever they are now."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HFFM_CACHE") == str(self.cache):
                    found.append(process)
            except psutil.Error:
                continue
        return [p for p in found if p.pid != self.process.pid]

    def nothing_is_left(self) -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until and (self.of_it() or any(self.temporary.iterdir())):
            time.sleep(0.2)
        assert [p.cmdline() for p in self.of_it()] == []
        assert list(self.temporary.iterdir()) == []
        logs = "".join(p.read_text() for p in (self.run / "logs").glob("*.log"))
        ports = set(re.findall(r"running on https?://(127\.0\.0\.1:\d+)", logs))
        assert ports
        assert not any(map(listening, ports))

    def kill(self, name: str) -> None:
        """Kill -9 of one of its programs."""
        psutil.Process(int(self.until("run.log", rf"{name} started, pid (\d+)")[1])).kill()

    def end(self) -> None:
        """End whatever is left of it."""
        if self.process.poll() is None:
            self.process.kill()
        for process in self.of_it():
            process.kill()
