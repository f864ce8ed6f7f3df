from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hffm_flower.errors import ModuleError, OutputError
from hffm_flower.report import RoundReport, Score
from hffm_flower.runfiles import HANDED_IN, LOG, MODEL, RESULT, ROUNDS, RunFiles
from tests.support.memory import H, module, same


def test_a_new_folder_is_made_and_taken(tmp_path: Path) -> None:
    files = RunFiles.create(tmp_path / "a" / "b")
    assert files.rounds() == []
    assert [p.name for p in files.root.iterdir()] == [ROUNDS], "nothing else is left behind"


@pytest.mark.parametrize("name", [RESULT, ROUNDS, MODEL])
def test_a_folder_with_a_run_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("kept")
    with pytest.raises(OutputError, match=rf"already holds a run \({name}\)") as caught:
        RunFiles.create(tmp_path)
    assert caught.value.key == "paths.out"
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "kept"


def test_a_folder_with_other_files_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    RunFiles.create(tmp_path)
    with pytest.raises(OutputError, match="already holds a run"):
        RunFiles.create(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputError, match="is not a folder"):
        RunFiles.create(file)
    with pytest.raises(OutputError, match="is not writable: Not a directory"):
        RunFiles.create(file / "below")


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*, dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OutputError, match="is not writable: Permission denied"):
        RunFiles.create(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_two_runs_that_race_for_a_folder_do_not_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = tempfile.TemporaryFile

    def rival(*, dir: Path) -> object:
        (dir / ROUNDS).touch()
        return make(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", rival)
    with pytest.raises(OutputError, match="already holds a run"):
        RunFiles.create(tmp_path)


HOLD = """
import sys
from pathlib import Path
from hffm_flower.runfiles import RunFiles
files = RunFiles.claim(Path(sys.argv[1]))
files.leave_to_app()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_claimed_folder_is_refused_as_long_as_its_process_lives(tmp_path: Path) -> None:
    root = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = sorted(p.name for p in root.iterdir())
        with pytest.raises(OutputError) as caught:
            RunFiles.claim(root)
        assert str(caught.value).startswith(f"a run is at work in {str(root)!r}")
        assert "\n" not in str(caught.value)
        if f" {holder.pid} " in Path("/proc/locks").read_text():
            assert f"(pid {holder.pid})" in str(caught.value)
        assert sorted(p.name for p in root.iterdir()) == before, "it is left alone"
        app = RunFiles.create(root)  # as the run's own ServerApp does
        holder.kill()
    app.append(report(1))
    with pytest.raises(OutputError, match=r"already holds a run \(rounds.jsonl\)"):
        RunFiles.claim(root)
    (root / ROUNDS).unlink()
    assert [p.name for p in RunFiles.claim(root).root.iterdir()] == [ROUNDS]


def test_a_claim_ends_with_its_release_or_its_object(tmp_path: Path) -> None:
    first = RunFiles.claim(tmp_path)
    (tmp_path / ROUNDS).unlink()
    with pytest.raises(OutputError, match=rf"a run is at work in .*\(pid {os.getpid()}\)"):
        RunFiles.claim(tmp_path)
    first.release()
    second = RunFiles.claim(tmp_path)
    first.release()
    (tmp_path / ROUNDS).unlink()
    with pytest.raises(OutputError, match="a run is at work"):
        RunFiles.claim(tmp_path)
    del second
    RunFiles.claim(tmp_path)


def test_a_folder_left_to_an_app_is_for_nobody_else(tmp_path: Path) -> None:
    files = RunFiles.claim(tmp_path)
    files.leave_to_app()
    files.release()
    with pytest.raises(OutputError, match=rf"already holds a run \({HANDED_IN}\)"):
        RunFiles.claim(tmp_path)
    RunFiles.create(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [ROUNDS]


def test_a_file_system_without_locks_goes_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(folder: int, how: int) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("fcntl.flock", none)
    assert RunFiles.claim(tmp_path).rounds() == []
    with pytest.raises(OutputError, match="already holds a run"):
        RunFiles.claim(tmp_path)


def report(t: int) -> RoundReport:
    made = RoundReport(t, loss_sum=1.5, devices=[0, 2], dropped={"1": "späт"})
    made.add_score("edge", "iid", "watch7", Score(1, 2, 1.0))
    return made


def test_rounds_are_read_back_in_order(tmp_path: Path) -> None:
    files = RunFiles.create(tmp_path)
    for t in (1, 2, 3):
        files.append(report(t))
        assert RunFiles(tmp_path).rounds() == [report(i) for i in range(1, t + 1)]


def test_a_line_cut_off_in_the_middle_ends_the_record(tmp_path: Path) -> None:
    files = RunFiles.create(tmp_path)
    files.append(report(1))
    whole = len((tmp_path / ROUNDS).read_bytes())
    files.append(report(2))
    data = (tmp_path / ROUNDS).read_bytes()
    for cut in range(whole, len(data) - 1):
        (tmp_path / ROUNDS).write_bytes(data[:cut])
        assert files.rounds() == [report(1)], f"cut at {cut}"


def test_a_result_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RunFiles.create(tmp_path)
    first = {"status": "first", "config": {}, "summary": {}}
    files.write_result(first)
    with pytest.raises(TypeError):
        files.write_result({"status": object()})
    assert files.result() == first

    def crash(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            files.write_result(first | {"status": "second"})
    assert files.result() == first

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OutputError, match=f"{tmp_path}.*cannot be written: No space left"):
            files.write_result(first | {"status": "second"})
    files.write_result(first | {"status": "third"})
    assert files.result() == first | {"status": "third"}
    assert {p.name for p in tmp_path.iterdir()} == {RESULT, ROUNDS}


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "holds no finished run"), ("{", "holds no finished run"), ("[]", "is not a result")],
)
def test_a_result_that_is_none_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / RESULT).write_text(content)
    with pytest.raises(OutputError, match=said):
        RunFiles(tmp_path).result()


def test_modules_have_their_places(tmp_path: Path) -> None:
    files = RunFiles.create(tmp_path)
    files.save_cloud({H: module(1, 2)})
    assert same(files.cloud()[H], module(1, 2))
    assert files.edge(3) == tmp_path / "edges" / "3.safetensors"
    assert files.device(12) == tmp_path / "devices" / "12.safetensors"
    (tmp_path / MODEL).write_bytes(b"")
    with pytest.raises(ModuleError, match=MODEL):
        files.cloud()


def test_a_comparison_at_work_keeps_its_folder(tmp_path: Path) -> None:
    (tmp_path / LOG).touch()
    with pytest.raises(OutputError, match=LOG):
        RunFiles.claim(tmp_path)
