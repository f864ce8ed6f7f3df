"""A run's folder: what is in it, how it is written and read back.

```
result.json            config, versions, seed, status, rounds, summary
rounds.jsonl           one line per edge round, flushed as it ends
ledger.jsonl           every message of the run: one line per edge round, see `ledger.to_line`
model.safetensors      cloud modules, tensors named kind/name/tensor
edges/E.safetensors    state of edge E after the last edge round, before the cloud's exchange
devices/K.safetensors  modules that never leave device K (none for most methods)
run.log                what the processes of the run, or of the comparison it is part of, logged
.handed-in             a run was handed in; its ServerApp takes this away as it begins
```
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from hffm_flower.errors import ConfigError, OutputError
from hffm_flower.ledger import Transfer, from_line, to_line
from hffm_flower.modules import ModularState, ModuleKey, Tensor
from hffm_flower.records import read_state, write_state
from hffm_flower.report import RoundReport

RESULT = "result.json"
ROUNDS = "rounds.jsonl"
LEDGER = "ledger.jsonl"
MODEL = "model.safetensors"
LOG = "run.log"
HANDED_IN = ".handed-in"
"""Keeps the place of a run that its ServerApp has not begun."""


class RunFiles:
    """Reader and writer of one run's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._held: weakref.finalize[[int], RunFiles] | None = None

    @classmethod
    def create(cls, root: Path) -> Self:
        """Take ``root`` for a new run.

        Raises:
            OutputError: It already holds a run, is no folder, or cannot be written.
        """
        files = cls(root)
        files._make()
        files._begin()
        with _writing(root):
            (root / HANDED_IN).unlink(missing_ok=True)
        return files

    @classmethod
    def claim(cls, root: Path) -> Self:
        """Take ``root`` as `create` does, and keep others from claiming it.

        The claim ends with `release`, or with this process, however that ends; it is no file.
        On a file system without locks there is none.

        Raises:
            OutputError: As with `create`, or a run is at work there.
        """
        files = cls(root)
        files._make()
        files._lock()
        try:
            files._begin(HANDED_IN, LOG)
        except OutputError:
            files.release()
            raise
        return files

    def release(self) -> None:
        """Let others claim the folder."""
        if self._held is not None:
            self._held()

    def leave_to_app(self) -> None:
        """Let a ServerApp `create` this folder; until then nobody else may claim it."""
        (self.root / HANDED_IN).touch()
        (self.root / ROUNDS).unlink(missing_ok=True)

    def _make(self) -> None:
        """Have a folder there."""
        root = self.root
        if not str(root) or str(root) == ".":
            raise OutputError("name a folder for the results, not the current one", key="paths.out")
        try:
            if root.exists() and not root.is_dir():
                raise OutputError(f"{str(root)!r} is not a folder", key="paths.out")
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{str(root)!r} is no usable path: {error}", key="paths.out"
            ) from error
        with _writing(root):
            root.mkdir(parents=True, exist_ok=True)

    def _lock(self) -> None:
        with _writing(self.root):
            folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        self._held = weakref.finalize(self, os.close, folder)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise OutputError(
                f"a run is at work in {str(self.root)!r}{_who_holds(self.root)}; "
                "choose another folder",
                key="paths.out",
            ) from error
        except OSError:  # there are no locks here
            self.release()

    def _begin(self, *others: str) -> None:
        """Note that a run is here; nothing of another one may be, nor any of ``others``."""
        root = self.root
        with _writing(root):
            taken = [n for n in (RESULT, ROUNDS, MODEL, *others) if (root / n).exists()]
        if taken:
            raise OutputError(
                f"{str(root)!r} already holds a run ({', '.join(taken)}); "
                "choose another folder or remove it",
                key="paths.out",
            )
        with _writing(root):
            with tempfile.TemporaryFile(dir=root):
                pass
            (root / ROUNDS).touch(exist_ok=False)

    def append(self, report: RoundReport) -> None:
        """Add one edge round's line; it is on disk when this returns."""
        self._append(ROUNDS, report.to_json())

    def append_transfers(self, t: int, transfers: Sequence[Transfer]) -> None:
        """Add one edge round's messages; they are on disk when this returns."""
        self._append(LEDGER, to_line(t, transfers))

    def transfers(self) -> dict[int, tuple[Transfer, ...]]:
        """Edge round -> its messages; round 0 is before the first.

        Raises:
            OutputError: The file cannot be read.
        """
        found: dict[int, tuple[Transfer, ...]] = {}
        try:
            for line in (self.root / LEDGER).read_text(encoding="utf-8").splitlines():
                t, rows = from_line(line)
                found[t] = found.get(t, ()) + rows
        except (OSError, ValueError, ConfigError) as error:
            raise OutputError(f"{self.root / LEDGER} cannot be read: {error}") from error
        return found

    def _append(self, name: str, line: str) -> None:
        with (self.root / name).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rounds(self) -> list[RoundReport]:
        """Finished edge rounds, in order; a line cut off in the middle ends them.

        Raises:
            OutputError: The file cannot be read.
        """
        reports = []
        try:
            lines = (self.root / ROUNDS).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise OutputError(f"{self.root / ROUNDS} cannot be read: {error}") from error
        for line in lines:
            try:
                reports.append(RoundReport.from_json(line))
            except (ValueError, TypeError, KeyError, AttributeError):
                break
        return reports

    def has_result(self) -> bool:
        """Whether ``result.json`` is there."""
        return (self.root / RESULT).exists()

    def write_result(self, result: Mapping[str, object]) -> None:
        """Write ``result.json``, whole or not at all."""
        part = self.root / f"{RESULT}.part"
        try:
            part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            part.replace(self.root / RESULT)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OutputError(f"{str(self.root)!r} cannot be written: {error.strerror}") from error

    def result(self) -> dict[str, object]:
        """Read ``result.json``.

        Raises:
            OutputError: There is none, or it is damaged.
        """
        try:
            loaded = json.loads((self.root / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(f"{str(self.root)!r} holds no finished run: {error}") from error
        if not isinstance(loaded, dict) or not loaded.keys() >= {"config", "status", "summary"}:
            raise OutputError(f"{self.root / RESULT} is not a result")
        return loaded

    def edge(self, index: int) -> Path:
        """File of an edge."""
        return self.root / "edges" / f"{index}.safetensors"

    def device(self, index: int) -> Path:
        """File of a device."""
        return self.root / "devices" / f"{index}.safetensors"

    def save_cloud(self, state: ModularState) -> None:
        """Write the cloud's modules."""
        write_state(self.root / MODEL, state)

    def cloud(self) -> dict[ModuleKey, dict[str, Tensor]]:
        """Read the cloud's modules."""
        return read_state(self.root / MODEL)


@contextlib.contextmanager
def _writing(root: Path) -> Iterator[None]:
    """Name the folder in what goes wrong."""
    try:
        yield
    except FileExistsError as error:
        raise OutputError(
            f"{str(root)!r} already holds a run, or is a broken link", key="paths.out"
        ) from error
    except OSError as error:
        raise OutputError(
            f"{str(root)!r} is not writable: {error.strerror}", key="paths.out"
        ) from error


def _who_holds(root: Path) -> str:
    """The process that has locked a folder, in brackets, where the kernel tells."""
    with contextlib.suppress(OSError):
        at = root.stat()
        name = f"{os.major(at.st_dev):02x}:{os.minor(at.st_dev):02x}:{at.st_ino}"
        for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[1:2] == ["FLOCK"] and words[5:6] == [name]:
                return f" (pid {words[4]})"
    return ""
