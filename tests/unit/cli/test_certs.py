"""``hffm certs`` in process."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hffm_flower.cli import main
from hffm_flower.pki import Party, Role
from hffm_flower.pki_folder import add


@pytest.fixture
def hffm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hffm", *words])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        code = exit_.value.code
        return (code if isinstance(code, int) else 0), out, " ".join(err.split())

    return run


def test_made_added_shown(hffm: Any) -> None:
    code, out, _ = hffm("certs", "make", "pki", "--server", "cloud=cloud.example", "--devices", "2")
    assert code == 0
    code, out, _ = hffm("certs", "add", "pki", "--edge", "edge-0=10.1.2.3", "--device", "bob")
    assert code == 0
    code, out, _ = hffm("certs", "show", "pki")
    assert code == 0
    for part in ("CN=cloud", "cloud.example", "CN=device-1", "CN=bob", "edge-0 10.1.2.3", "UTC"):
        assert part in out
    assert "warning" not in out


def test_expired_ones_are_warned_of(hffm: Any) -> None:
    hffm("certs", "make", "pki", "--server", "cloud", "--devices", "1", "--days", "3")
    bob = Party.parse("bob", Role.DEVICE)
    add(Path("pki"), [bob], days=1, now=datetime.now(UTC) - timedelta(days=2))
    code, out, _ = hffm("certs", "show", "pki")
    assert code == 1
    assert "warning: bob: expired" in out
    assert "warning: device-0 expires in 3.0 days" in out
    assert "warning: ca" not in out


BAD = {
    "nobody": (["make", "pki"], "name at least one machine"),
    "bad name": (["make", "pki", "--server", "cloud=*.example"], "'*.example' is neither"),
    "bad folder": (["make", "pki", "--device", "../x"], "'../x' cannot name a device"),
    "days": (["make", "pki", "--devices", "1", "--days", "0"], "--days 0 is not in 1..3650"),
    "nothing there": (["show", "none"], "no certificate that can be read"),
    "no authority": (["add", "none", "--devices", "1"], "no authority that can be read"),
    "a file": (["make", "file", "--devices", "1"], "'file' already exists; --force"),
    "below a file": (["make", "file/pki", "--devices", "1"], "cannot be made"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, hffm: Any) -> None:
    Path("file").write_text("", encoding="utf-8")
    words, expected = BAD[name]
    code, out, err = hffm("certs", *words)
    assert (code, out) == (2, "")
    assert expected in err
    assert [p.name for p in Path().iterdir()] == ["file"]
