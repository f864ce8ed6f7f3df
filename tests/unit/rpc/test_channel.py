from __future__ import annotations

from pathlib import Path

import pytest

from clients.peers import PeerExchange
from hffm_flower.errors import ConfigError
from hffm_flower.rpc.channel import Credentials

PEM = b"-----BEGIN CERTIFICATE-----"


def test_files_of_credentials_are_read_and_the_key_is_not_shown(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(PEM + name.encode())
    found = Credentials.read(tmp_path / "a", tmp_path / "b", tmp_path / "c", server_name="peer")
    assert (found.authority, found.certificate, found.key) == (PEM + b"a", PEM + b"b", PEM + b"c")
    assert "CERTIFICATE-----c" not in repr(found)


def test_a_file_that_is_missing_or_no_pem_is_named(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(PEM)
    bad.write_bytes(b"secret")
    with pytest.raises(ConfigError, match="no-file"):
        Credentials.read(good, good, tmp_path / "no-file")
    with pytest.raises(ConfigError, match="bad holds no PEM") as caught:
        Credentials.read(good, bad, good)
    assert "secret" not in str(caught.value)


def test_peers_speak_in_the_clear_only_if_asked_to() -> None:
    with pytest.raises(ConfigError, match="insecure"):
        PeerExchange(0, "127.0.0.1:0")
    with pytest.raises(ConfigError, match="insecure"):
        PeerExchange(0, "127.0.0.1:0", credentials=Credentials(PEM, PEM, PEM), insecure=True)
