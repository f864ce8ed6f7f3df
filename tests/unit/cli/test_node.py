"""``hffm node``: what it refuses, and that nothing is insecure unless it is said."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from clients import client_app
from clients.flower_internals import SuperLink
from clients.runner import NodeRunner
from hffm_flower.cli import main
from hffm_flower.cli.node import parse_node_config
from hffm_flower.errors import ConfigError
from hffm_flower.pki import Party, Role
from hffm_flower.pki_folder import create

Made = dict[str, Any]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Made]:
    """What a runner was made of; it ends at once, as by Ctrl-C."""
    made: Made = {}

    def run(self: NodeRunner, stop: object) -> None:
        where = cast(Any, self._connect).__self__
        made.update(where=where, app=self._app, config=self._node_config)
        raise KeyboardInterrupt

    monkeypatch.setattr(NodeRunner, "run", run)
    monkeypatch.setattr(logging, "basicConfig", lambda **settings: None)
    monkeypatch.chdir(tmp_path)
    create(tmp_path / "pki", [Party("device-0", Role.DEVICE)])
    level = logging.getLogger("httpx").level
    yield made
    logging.getLogger("httpx").setLevel(level)


@pytest.fixture
def hffm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], started: Made
) -> Callable[..., tuple[int, str]]:
    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["hffm", "node", *words])
        with pytest.raises(SystemExit) as exit_:
            main()
        code = exit_.value.code
        return (code if isinstance(code, int) else 0), " ".join(capsys.readouterr().err.split())

    return run


Hffm = Callable[..., tuple[int, str]]


def test_tls_is_on_unless_it_is_said(hffm: Hffm, started: Made) -> None:
    assert hffm("--superlink", "cloud.example:8000", "--node-config", "partition-id=3")[0] == 0
    where = started["where"]
    assert isinstance(where, SuperLink)
    assert (where.address, where.insecure, where.registered) == ("cloud.example:8000", False, False)
    assert where.root_certificates is None
    assert started["app"] is client_app.app
    assert started["config"] == {"partition-id": 3}
    assert hffm("--superlink", "[::1]:8000", "--insecure")[0] == 0
    assert started["where"].insecure


def test_certificates_and_keys_reach_the_link(hffm: Hffm, started: Made) -> None:
    words = ["--root-certificates", "pki/device-0/ca.pem"]
    words += ["--auth-supernode-private-key", "pki/device-0/supernode.key"]
    assert hffm("--superlink", "127.0.0.1:8000", *words)[0] == 0
    where = started["where"]
    assert (where.insecure, where.registered) == (False, True)
    assert where.root_certificates == Path("pki/device-0/ca.pem").read_bytes()
    assert isinstance(where.key.curve, ec.SECP384R1)


LINK = ["--superlink", "h:1"]
BAD: dict[str, tuple[list[str], str]] = {
    "no superlink": ([], "--superlink"),
    "no port": (["--superlink", "cloud"], "'cloud' is not of the form HOST:PORT"),
    "a prefix": (["--superlink", "https://cloud:1"], "without 'http://'"),
    "port out of range": (["--superlink", "cloud:65536"], "HOST:PORT"),
    "insecure with trust": (
        [*LINK, "--insecure", "--root-certificates", "pki/ca/cert.pem"], "both need TLS",
    ),
    "insecure with a key": (
        [*LINK, "--insecure", "--auth-supernode-private-key", "pki/device-0/supernode.key"],
        "both need TLS",
    ),
    "no such file": ([*LINK, "--root-certificates", "none.pem"], "'none.pem' cannot be read"),
    "no certificate": (
        [*LINK, "--root-certificates", "pki/ca/key.pem"], "holds no PEM certificate",
    ),
    "a key of TLS": (
        [*LINK, "--auth-supernode-private-key", "pki/device-0/key.pem"], "is no OpenSSH key",
    ),
    "config without a value": ([*LINK, "--node-config", "partition-id"], "key=value"),
    "app without a colon": ([*LINK, "--app", "clients"], "module:attribute"),
    "app that is not there": ([*LINK, "--app", "nowhere.app:app"], "cannot be loaded: No module"),
    "app of another name": ([*LINK, "--app", "clients.client_app:nix"], "no attribute 'nix'"),
    "no app": ([*LINK, "--app", "clients.client_app:profile"], "is a function, not a ClientApp"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, hffm: Hffm, started: Made) -> None:
    words, expected = BAD[name]
    code, err = hffm(*words)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    assert started == {}


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("", {}),
        ("partition-id=3", {"partition-id": 3}),
        ("  partition-id = 3  slow=true ", {"partition-id": 3, "slow": True}),
        ("place=\"the attic\" share=0.5 peer='a:1'", {"place": "the attic", "share": 0.5, "peer": "a:1"}),  # noqa: E501
        ("a.b=1", {"a.b": 1}),
    ],
)  # fmt: skip
def test_node_config(text: str, config: dict[str, object]) -> None:
    assert parse_node_config(text) == config


@pytest.mark.parametrize(
    "text", ["x", "x=", "=1", "x=attic", "x=1 y", "x=1 x=2", "x=[1]", "x=2026-01-01", 'x="a"b=1']
)
def test_bad_node_config(text: str) -> None:
    with pytest.raises(ConfigError, match="--node-config"):
        parse_node_config(text)
