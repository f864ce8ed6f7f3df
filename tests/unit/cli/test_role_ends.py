"""A role whose programs cannot work ends, with a code and one line that says why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hffm_flower.cli import main
from hffm_flower.session import processes, serving
from hffm_flower.session.processes import Program
from hffm_flower.session.roles import DeviceRole

DIE = "import sys; print('error: ' + sys.argv[1], file=sys.stderr); sys.exit(int(sys.argv[2]))"


@pytest.mark.parametrize(("code", "ends", "said"), [
    (2, 2, "error: device cannot work as it is set: no such key"),
    (3, 1, "failed: device cannot be kept alive, it died with code 3: no such key"),
])  # fmt: skip
def test_a_device_whose_node_cannot_live(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    code: int, ends: int, said: str,
) -> None:  # fmt: skip
    argv = (sys.executable, "-c", DIE, "no such key", str(code))
    monkeypatch.setattr(DeviceRole, "node", lambda self, name: Program(name, argv))
    if code != 2:
        monkeypatch.setattr(serving, "_lasting", lambda program: Program("device", argv, 0))
    monkeypatch.setattr(serving, "TICK_S", 0.02)
    monkeypatch.setattr(processes, "GRACE_S", 0.5)
    (tmp_path / "device.toml").write_text('index = 3\ninsecure = true\nsuperlink = "h:2"\n')
    monkeypatch.setattr(sys, "argv", ["hffm", "device", str(tmp_path / "device.toml")])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == ends
    err = capsys.readouterr().err
    assert said in " ".join(err.split())
    assert "Traceback" not in err
