"""The folder of a test deployment's certificates: made, extended.

```
DIR/ca/        cert.pem  key.pem                           the authority; its key stays here
DIR/cloud/     ca.pem  cert.pem  key.pem                   server
DIR/edge-0/    ca.pem  cert.pem  key.pem  supernode.*      server, and a SuperNode upstream
DIR/device-0/  ca.pem  cert.pem  key.pem  supernode.*      peer (both ends), and a SuperNode
```

Keys have mode 0600, folders 0700. A machine needs its own folder and nothing else.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from hffm_flower.errors import ConfigError, OutputError
from hffm_flower.pki import (
    CA,
    LONGEST_DAYS,
    Authority,
    Party,
    Role,
    cert_pem,
    key_pem,
    supernode_pair,
    tls_key,
)

CERT, KEY, CA_CERT = "cert.pem", "key.pem", "ca.pem"
SUPERNODE_KEY, SUPERNODE_PUB = "supernode.key", "supernode.pub"
PRIVATE = frozenset({KEY, SUPERNODE_KEY})


def create(
    root: Path,
    parties: Iterable[Party],
    *,
    days: int = 365,
    force: bool = False,
    now: datetime | None = None,
) -> None:
    """Make a folder with a new authority and all ``parties``, whole or not at all.

    Args:
        root: Folder to make.
        parties: Machines.
        days: How long their certificates are valid [d].
        force: Replace what an earlier `create` made.
        now: When validity begins; for tests.

    Raises:
        ConfigError: Two machines have one name, or ``days`` is out of range.
        OutputError: ``root`` is not empty, or cannot be written.
    """
    parties, now = list(parties), now or datetime.now(UTC)
    _check(parties, days)
    _check_free(root, force=force)
    authority = Authority.new(now)
    with _Staging(root) as part:
        _write(part / CA, {CERT: cert_pem(authority.cert), KEY: key_pem(authority.key)})
        for party in parties:
            _write(part / party.name, _files(authority, party, days=days, now=now))


def add(
    root: Path,
    parties: Iterable[Party],
    *,
    days: int = 365,
    force: bool = False,
    now: datetime | None = None,
) -> None:
    """Add machines to a folder that `create` made, or renew theirs; each whole or not at all.

    Raises:
        ConfigError: ``root`` holds no authority, its own has expired, two machines have one
            name, or ``days`` is out of range.
        OutputError: A machine is there already and ``force`` is not set, or ``root`` cannot
            be written.
    """
    parties, now = list(parties), now or datetime.now(UTC)
    _check(parties, days)
    authority = _authority(root)
    if authority.cert.not_valid_after_utc <= now:
        raise ConfigError(f"the authority in {str(root)!r} has expired; make all of it anew")
    for party in parties:
        if (root / party.name).exists() and not force:
            raise OutputError(f"{str(root / party.name)!r} already exists; --force makes it anew")
    for party in parties:
        with _Staging(root / party.name) as part:
            _write(part, _files(authority, party, days=days, now=now))


class _Staging:
    """A hidden folder beside ``target`` that takes its place at the end, if all went well."""

    def __init__(self, target: Path) -> None:
        self.target = target.resolve()

    def __enter__(self) -> Path:
        parent = self.target.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self._work = Path(tempfile.mkdtemp(dir=parent, prefix=f".{self.target.name}."))
            (self._work / "new").mkdir(mode=0o700)
        except OSError as error:
            raise OutputError(f"{str(self.target)!r} cannot be made: {error.strerror}") from error
        return self._work / "new"

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._swap()
        except OSError as error:
            raise OutputError(f"{str(self.target)!r} cannot be made: {error.strerror}") from error
        finally:
            shutil.rmtree(self._work, ignore_errors=True)

    def _swap(self) -> None:
        old = self._work / "old"
        with suppress(FileNotFoundError):
            os.rename(self.target, old)
        try:
            os.rename(self._work / "new", self.target)
        except OSError:
            if old.exists():
                os.rename(old, self.target)
            raise


def _authority(root: Path) -> Authority:
    folder = root / CA
    try:
        return Authority.from_pem((folder / CERT).read_bytes(), (folder / KEY).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} holds no authority that can be read: {error}") from error


def _check_free(root: Path, *, force: bool) -> None:
    """Refuse a folder that is not empty; with ``force`` one that holds anything but ours."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    if not force:
        raise OutputError(f"{str(root)!r} already exists; --force makes all of it anew")
    entries = sorted(root.iterdir()) if root.is_dir() else [root]
    if foreign := [e.name for e in entries if not (e / CERT).is_file()]:
        raise OutputError(
            f"{str(root)!r} holds more than certificates ({', '.join(foreign)}); "
            "it is not written over"
        )


def _check(parties: list[Party], days: int) -> None:
    if not 1 <= days <= LONGEST_DAYS:
        raise ConfigError(f"--days {days} is not in 1..{LONGEST_DAYS}")
    names = [party.name for party in parties]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ConfigError(f"{', '.join(twice)} is named more than once")


def _files(authority: Authority, party: Party, *, days: int, now: datetime) -> dict[str, bytes]:
    key = tls_key()
    files = {
        CA_CERT: cert_pem(authority.cert),
        CERT: cert_pem(authority.sign(party, key.public_key(), days=days, now=now)),
        KEY: key_pem(key),
    }
    if party.role is not Role.SERVER:
        files[SUPERNODE_KEY], files[SUPERNODE_PUB] = supernode_pair(party.name)
    return files


def _write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, content in files.items():
        mode = 0o600 if name in PRIVATE else 0o644
        number = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(number, "wb") as file:
            file.write(content)
