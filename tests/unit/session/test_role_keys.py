"""A role's keys and certificates are looked at before anything starts with them."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hffm_flower.errors import ConfigError
from hffm_flower.pki import LONGEST_DAYS, Party, Role
from hffm_flower.pki_folder import add, create
from hffm_flower.session.roles import CloudRole, DeviceRole

NOW = datetime.now(UTC)
DEVICE = Party("device-0", Role.DEVICE)
TABLE: dict[str, object] = {
    "index": 0, "superlink": "10.0.0.2:8000", "certificates": "pki/device-0",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A device's folder; beside it that of another device, and another authority's."""
    create(tmp_path / "pki", [DEVICE, Party("device-1", Role.DEVICE)])
    create(tmp_path / "other", [DEVICE])
    return tmp_path / "pki" / "device-0"


def replaced(file: str, source: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / file).write_bytes((folder.parents[1] / source).read_bytes())

    return spoil


def written(file: str, text: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / file).write_text(text)

    return spoil


def renewed(since: datetime, days: int) -> Callable[[Path], None]:
    return lambda folder: add(folder.parent, [DEVICE], days=days, force=True, now=since)


def old_authority(folder: Path) -> None:
    create(folder.parent, [DEVICE], force=True, now=NOW - timedelta(days=LONGEST_DAYS + 1))


def opened(file: str, mode: int) -> Callable[[Path], None]:
    return lambda folder: (folder / file).chmod(mode)


def unreadable(folder: Path) -> None:
    (folder / "cert.pem").unlink()
    (folder / "cert.pem").mkdir()


BAD: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "no SuperNode key": (
        lambda f: (f / "supernode.key").unlink(), ("holds no supernode.key that can be read",),
    ),
    "a folder": (unreadable, ("holds no cert.pem that can be read: Is a directory",)),
    "a TLS key for a SuperNode": (
        replaced("supernode.key", "pki/device-0/key.pem"),
        ("/supernode.key' is no OpenSSH key: ", "'hffm certs add DIR ... --force'"),
    ),
    "a cut SuperNode key": (
        written("supernode.key", "-----BEGIN OPENSSH PRIVATE KEY-----\n"), ("is no OpenSSH key",),
    ),
    "no certificate": (
        written("cert.pem", "none"), ("/cert.pem' holds no certificate that can be read: ",),
    ),
    "no authority": (written("ca.pem", ""), ("/ca.pem' holds no certificate that can be read: ",)),
    "no key": (written("key.pem", "none"), ("/key.pem' is no private key: ",)),
    "another's key": (
        replaced("key.pem", "pki/device-1/key.pem"), ("/key.pem' does not fit cert.pem; ",),
    ),
    "another authority": (
        replaced("ca.pem", "other/device-0/ca.pem"),
        ("/cert.pem' is not signed by the authority in ca.pem; ",),
    ),
    "expired": (
        renewed(NOW - timedelta(days=9), 2),
        (f"/cert.pem' expired on {NOW - timedelta(days=7):%Y-%m-%d %H:%M} UTC; ", "hffm certs add"),
    ),
    "of the future": (
        renewed(NOW + timedelta(days=9), 2), ("/cert.pem' not valid before ", "look at the clock"),
    ),
    "an old authority": (old_authority, ("/ca.pem' expired on ", "hffm certs make")),
    "a key for the group": (
        opened("key.pem", 0o640), ("/key.pem' is open to others (mode 0640); allowed: 0600",),
    ),
    "a node's key for all": (
        opened("supernode.key", 0o604), ("/supernode.key' is open to others (mode 0604)",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_folder_that_cannot_work(name: str, folder: Path) -> None:
    spoil, expected = BAD[name]
    spoil(folder)
    with pytest.raises(ConfigError) as refused:
        DeviceRole.made(TABLE, folder.parents[1])
    said = str(refused.value)
    assert said.startswith("certificates: ")
    assert "\n" not in said
    for part in expected:
        assert part in said


def test_folders_that_can_work(folder: Path) -> None:
    root = folder.parents[1]
    DeviceRole.made(TABLE, root)
    several = (root / "other" / "ca" / "cert.pem").read_bytes() + (folder / "ca.pem").read_bytes()
    (folder / "ca.pem").write_bytes(several)
    (folder / "key.pem").chmod(0o400)
    DeviceRole.made(TABLE, root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_key_of_somebody_else(folder: Path) -> None:
    (folder / "key.pem").chmod(0)
    with pytest.raises(ConfigError, match=r"holds no key.pem that can be read: Permission denied"):
        DeviceRole.made(TABLE, folder.parents[1])


def test_a_cloud_needs_no_node_key(tmp_path: Path) -> None:
    create(tmp_path / "pki", [Party("cloud", Role.SERVER)])
    CloudRole.made({"certificates": "pki/cloud"}, tmp_path)
    (tmp_path / "pki" / "cloud" / "key.pem").unlink()
    with pytest.raises(ConfigError, match=r"holds no key\.pem"):
        CloudRole.made({"certificates": "pki/cloud"}, tmp_path)
