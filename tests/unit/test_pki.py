"""Certificates do what they are made for, and nothing else."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from hffm_flower.errors import ConfigError, OutputError
from hffm_flower.pki import LONGEST_DAYS, SKEW, Party, Role
from hffm_flower.pki_folder import add, create
from hffm_flower.pki_inspect import inspect
from tests.support.certificates import PARTIES


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_every_machine_has_its_folder_and_only_its_own_keys(made: Path) -> None:
    tls, node = {"ca.pem", "cert.pem", "key.pem"}, {"supernode.key", "supernode.pub"}
    assert {str(Path(name)) for name in files(made)} == {
        "ca/cert.pem", "ca/key.pem", *(f"cloud/{f}" for f in tls),
        *(f"{m}/{f}" for m in ("edge-0", "device-0", "device-1") for f in tls | node),
    }  # fmt: skip
    keys = [content for name, content in files(made).items() if name.endswith("key.pem")]
    assert len(set(keys)) == len(keys)


def test_modes(made: Path) -> None:
    for path in (made, *made.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode == 0o700, path
        elif path.name in {"key.pem", "supernode.key"}:
            assert mode == 0o600, path
            assert b"PRIVATE KEY" in path.read_bytes()
        else:
            assert b"PRIVATE" not in path.read_bytes()


def test_names_are_those_given_and_loopback_only_for_servers(made: Path) -> None:
    names = {found.name: found.names for found in inspect(made)}
    assert names == {
        "ca": (),
        "cloud": ("cloud", "cloud.example", "10.0.0.1", "localhost", "127.0.0.1", "::1"),
        "edge-0": ("edge-0", "localhost", "127.0.0.1", "::1"),
        "device-0": ("device-0", "127.0.0.1", "::1"),
        "device-1": ("device-1", "127.0.0.1"),
    }


def test_supernode_keys_are_what_flower_reads(made: Path) -> None:
    from flwr.cli.supernode.register import try_load_public_key

    private = serialization.load_ssh_private_key(
        (made / "device-0" / "supernode.key").read_bytes(), None
    )
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert try_load_public_key(made / "device-0" / "supernode.pub") == public


@pytest.mark.parametrize(
    "text",
    ["", "ca", "Cloud", "a b", "../up", "a.b", "-a", "a" * 64, "a=*.example", "a=10.0.0.256",
     "a=b_c", "a=b..c", "a=b,", "a=http://b", "a=b:80", f"a={'b.' * 127}cc"],
)  # fmt: skip
def test_bad_names_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Party.parse(text, Role.SERVER)


@pytest.mark.parametrize("days", [0, -1, LONGEST_DAYS + 1])
def test_days_out_of_range(days: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--days {days}"):
        create(tmp_path / "certs", PARTIES, days=days)
    assert not list(tmp_path.iterdir())


def test_two_machines_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="edge-0 is named more than once"):
        create(tmp_path / "certs", [PARTIES[1], PARTIES[1]])


def test_nothing_is_written_over_without_force(tmp_path: Path) -> None:
    root = tmp_path / "certs"
    create(root, PARTIES)
    before = files(root)
    with pytest.raises(OutputError, match="--force"):
        create(root, PARTIES)
    with pytest.raises(OutputError, match="--force"):
        add(root, PARTIES[:1])
    assert files(root) == before
    create(root, PARTIES[:1], force=True)
    assert {p.name for p in root.iterdir()} == {"ca", "cloud"}
    assert files(root)["ca/cert.pem"] != before["ca/cert.pem"]
    assert [p.name for p in tmp_path.iterdir()] == ["certs"]


def test_force_deletes_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years", encoding="utf-8")
    with pytest.raises(OutputError, match=r"thesis\.txt"):
        create(tmp_path, PARTIES, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failure_on_the_way_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "certs"
    create(root, PARTIES)
    before = files(root)
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OutputError, match="No space left"):
        create(root, PARTIES, force=True)
    assert files(root) == before
    assert [p.name for p in tmp_path.iterdir()] == ["certs"]


def test_added_machines_end_with_the_authority_at_the_latest(tmp_path: Path) -> None:
    root, now = tmp_path / "certs", datetime.now(UTC)
    create(root, PARTIES[:1], now=now - timedelta(days=LONGEST_DAYS - 10))
    add(root, PARTIES[2:3], days=365)
    found = {f.name: f for f in inspect(root)}
    assert found["device-0"].until == found["ca"].until
    assert found["device-0"].soon
    assert found["device-0"].faults == ()
    with pytest.raises(ConfigError, match="has expired"):
        add(root, PARTIES[3:], now=now + timedelta(days=11))


def test_inspect_sees_open_keys_strangers_and_the_future(made: Path, tmp_path: Path) -> None:
    root, later = tmp_path / "certs", datetime.now(UTC) + timedelta(days=1)
    create(root, PARTIES, now=later)
    (root / "edge-0" / "key.pem").chmod(0o644)
    (root / "cloud" / "cert.pem").write_bytes((made / "cloud" / "cert.pem").read_bytes())
    faults = {f.name: f.faults for f in inspect(root)}
    early = f"not valid before {later - SKEW:%Y-%m-%d %H:%M} UTC"
    assert faults["device-0"] == (early,)
    assert faults["edge-0"] == (early, "key.pem is open to others (mode 0644)")
    assert faults["cloud"] == ("not signed by this authority", "key.pem does not fit cert.pem")


def test_folders_without_an_authority(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no authority"):
        add(tmp_path, PARTIES)
    with pytest.raises(ConfigError, match="no certificate"):
        inspect(tmp_path)
    create(tmp_path / "certs", PARTIES)
    key = (tmp_path / "certs" / "cloud" / "key.pem").read_bytes()
    (tmp_path / "certs" / "ca" / "key.pem").write_bytes(key)
    with pytest.raises(ConfigError, match="do not belong together"):
        add(tmp_path / "certs", PARTIES, force=True)
    other = ed25519.Ed25519PrivateKey.generate()
    for protection, why in (
        (serialization.NoEncryption(), "not on an elliptic curve"),
        (serialization.BestAvailableEncryption(b"secret"), "encrypted"),
    ):
        pem = other.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection
        )
        (tmp_path / "certs" / "ca" / "key.pem").write_bytes(pem)
        with pytest.raises(ConfigError, match=why):
            add(tmp_path / "certs", PARTIES, force=True)
