"""Certificates and keys that lie in a folder: listed, and refused where they cannot work."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from hffm_flower.errors import ConfigError
from hffm_flower.pki import CA, read_key, read_supernode_key
from hffm_flower.pki_folder import CA_CERT, CERT, PRIVATE, SUPERNODE_KEY

SOON_DAYS = 14
"""A certificate that ends within this time is pointed out [d]."""
RENEW: Final = "'hffm certs add DIR ... --force' makes a machine's files anew"
ALL_ANEW: Final = "'hffm certs make DIR ... --force' makes all of them anew"


class Fault(NamedTuple):
    """Why a file must not be used.

    Attributes:
        file: Its name.
        what: What is wrong with it.
        mend: What helps.
    """

    file: str
    what: str
    mend: str = RENEW


@dataclass(frozen=True, slots=True)
class Found:
    """A certificate in a folder.

    Attributes:
        name: Folder.
        subject: Whom it names.
        names: DNS names and IP addresses of its holder.
        until: When it ends.
        days: How long it is still valid [d]; negative once it is not.
        faults: Why it or its key must not be used; empty if it may.
        node_key: Whether a SuperNode key lies beside it.
    """

    name: str
    subject: str
    names: tuple[str, ...]
    until: datetime
    days: float
    faults: tuple[str, ...]
    node_key: bool

    @property
    def soon(self) -> bool:
        """Whether it ends within `SOON_DAYS`."""
        return 0 <= self.days < SOON_DAYS


def inspect(root: Path, now: datetime | None = None) -> list[Found]:
    """All certificates of a folder, the authority's first.

    Raises:
        ConfigError: There is none, or one cannot be read.
    """
    now = now or datetime.now(UTC)
    (authority,) = _certificates(root / CA / CERT)[:1]
    folders = sorted(p.parent for p in root.glob(f"*/{CERT}") if p.parent.name != CA)
    found = []
    for folder in (root / CA, *folders):
        cert = _certificates(folder / CERT)[0]
        names: list[object] = []
        with suppress(x509.ExtensionNotFound):
            extension = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            names = [n.value for n in extension.value]
        issuer = [] if _issued(cert, authority) else [Fault(CERT, "not signed by this authority")]
        faults = chain(_dates(CERT, cert, now), issuer, _keys(folder, cert))
        found.append(
            Found(
                name=folder.name,
                subject=cert.subject.rfc4514_string(),
                names=tuple(map(str, names)),
                until=cert.not_valid_after_utc,
                days=(cert.not_valid_after_utc - now).total_seconds() / 86400,
                faults=tuple(f.what if f.file == CERT else f"{f.file} {f.what}" for f in faults),
                node_key=(folder / SUPERNODE_KEY).exists(),
            )
        )
    return found


def check_machine(folder: Path, files: Iterable[str], now: datetime | None = None) -> None:
    """Refuse a machine's folder whose files cannot work, before anything starts with them.

    Args:
        folder: With at least an authority, a certificate and its key.
        files: What the machine needs.
        now: For tests.

    Raises:
        ConfigError: A file is not there, cannot be read, or must not be used.
    """
    now = now or datetime.now(UTC)
    for name in files:
        _read(folder / name)
    cert, authorities = _certificates(folder / CERT)[0], _certificates(folder / CA_CERT)
    issuer = next((a for a in authorities if _issued(cert, a)), None)
    unknown = [] if issuer else [Fault(CERT, f"is not signed by the authority in {CA_CERT}")]
    dates = _dates(CA_CERT, issuer or authorities[0], now, ALL_ANEW)
    for fault in chain(_keys(folder, cert), dates, _dates(CERT, cert, now), unknown):
        raise ConfigError(f"{str(folder / fault.file)!r} {fault.what}; {fault.mend}")


def _dates(name: str, cert: x509.Certificate, now: datetime, mend: str = RENEW) -> Iterator[Fault]:
    since, until = cert.not_valid_before_utc, cert.not_valid_after_utc
    if now >= until:
        yield Fault(name, f"expired on {until:%Y-%m-%d %H:%M} UTC", mend)
    if now < since:
        yield Fault(name, f"not valid before {since:%Y-%m-%d %H:%M} UTC", "look at the clock")


def _keys(folder: Path, cert: x509.Certificate) -> Iterator[Fault]:
    """What is wrong with the private keys that are there."""
    for name in sorted(PRIVATE):
        path = folder / name
        if not path.exists():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            yield Fault(name, f"is open to others (mode {mode:04o})", "allowed: 0600, by chmod 600")
        try:
            if name == SUPERNODE_KEY:
                read_supernode_key(_read(path))
            elif read_key(_read(path)).public_key() != cert.public_key():
                yield Fault(name, f"does not fit {CERT}")
        except ValueError as error:
            what = str(error) if name == SUPERNODE_KEY else f"is no private key: {error}"
            yield Fault(name, what)


def _issued(cert: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        cert.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _certificates(path: Path) -> list[x509.Certificate]:
    """Certificates of a file, at least one."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{str(path)!r} holds no certificate that can be read: {error}; {RENEW}"
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{str(path.parent)!r} holds no {path.name} that can be read: {error.strerror}; "
            "it is made by hffm certs"
        ) from error
