"""Commands of a deployment: bad input, and what they print."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from hffm_flower.cli import main


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setenv("HFFM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)
    Path("cloud.toml").write_text("insecure = true\n")
    Path("edge.toml").write_text('index = 0\ninsecure = true\nupstream = "h:1"\n')
    Path("device.toml").write_text('index = 3\ninsecure = true\nsuperlink = "h:2"\n')
    Path("keyless.toml").write_text('insecure = true\nnodes = "none/*.pub"\n')
    Path("wide.toml").write_text(Path("device.toml").read_text() + 'stock-node = "0.0.0.0:9094"\n')
    Path("open.toml").write_text('insecure = true\nsuperlink = "0.0.0.0:1"\n')


def hffm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["hffm", *words])
    with pytest.raises(SystemExit) as exit_:
        main()
    code = exit_.value.code
    said = capsys.readouterr()
    return (code if isinstance(code, int) else 0), " ".join((said.out + said.err).split())


@pytest.mark.parametrize(("words", "message"), [
    (("up", "--method", "central"), "method (from --method): 'central' pools all data"),
    (("up", "--edges", "5", "--devices", "2"), "tree.edges (from --edges): 5 edges are more"),
    (("up", "--d2d", "mesh", "--smoke"), "none, relay, gossip, cooperative"),
    (("cloud", "none.toml"), "cannot read the role 'none.toml'"),
    (("cloud", "open.toml"), "open.toml: superlink: '0.0.0.0:1' is not on loopback"),
    (("edge", "cloud.toml"), "cloud.toml: index: Field required"),
    (("device", "edge.toml"), "upstream: unknown setting of a device; allowed: certificates, "),
    (("cloud", "keyless.toml"), "keyless.toml: nodes: there is no file 'none/*.pub'"),
    (("device", "wide.toml"), "wide.toml: stock-node: '0.0.0.0:9094' is not on loopback"),
    (("submit", "cloud.toml", "--set", "method=central"), "pools all data"),
    (("status", "open.toml"), "is not on loopback"),
    (("stop", "open.toml"), "is not on loopback"),
])  # fmt: skip
def test_bad_input_ends_with_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    code, said = hffm(monkeypatch, capsys, *words)
    assert (code, message in said) == (2, True), said
    assert "Flower's own commands" not in said


def test_an_address_that_is_taken_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        Path("cloud.toml").write_text(f'insecure = true\nlisten = "0.0.0.0:{port}"\n')
        code, said = hffm(monkeypatch, capsys, "cloud", "cloud.toml")
    assert code == 2
    assert f"listen: somebody listens on 0.0.0.0:{port} already" in said


@pytest.mark.parametrize(("role", "wanted"), [
    ("cloud", ["nodes reach 0.0.0.0:8000, /v1/fleet only", "no TLS",
               "flower-superlink --insecure --host 127.0.0.1 --port 8001"]),
    ("edge", ["flower-superlink --insecure", "flower-supernode --superlink h:1 --insecure",
              'gateway="127.0.0.1:8002" insecure=true', "flwr run . here --run-config",
              'deploy.tier="edge"']),
    ("device", ["flower-supernode --superlink h:2", "partition-id=3 insecure=true"]),
])  # fmt: skip
def test_show_prints_flowers_own_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    role: str, wanted: list[str],
) -> None:  # fmt: skip
    code, said = hffm(monkeypatch, capsys, role, f"{role}.toml", "--show")
    assert code == 0
    for words in wanted:
        assert words in said
