"""Keys and certificates of a test deployment: who gets what, and for how long.

TLS keys are on P-256. A SuperNode's pair is on P-384 and in the OpenSSH form that
``flower-supernode --auth-supernode-private-key`` and ``flwr supernode register`` read.
Private keys are not encrypted: this is for development.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hffm_flower.errors import ConfigError

CA = "ca"
LONGEST_DAYS = 3650
"""The authority is valid for this long; nothing that it signs outlives it."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of every server beside its own: a SuperLink's own programs call it by loopback."""
SKEW = timedelta(minutes=5)
"""Certificates begin this much earlier, for machines whose clocks differ."""

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
AUTHORITY = "hffm-flower development"


class Role(StrEnum):
    """What a machine does, which decides what it gets."""

    SERVER = "server"
    EDGE = "edge"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Party:
    """A machine that gets a folder.

    Attributes:
        name: Its folder and the subject of its certificate; also a DNS name of it.
        role: What it does.
        names: Further DNS names and IP addresses by which others reach it.
    """

    name: str
    role: Role
    names: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, role: Role) -> Self:
        """Read ``NAME`` or ``NAME=NAME_OR_IP,...``.

        Raises:
            ConfigError: A name is none.
        """
        name, _, rest = text.partition("=")
        party = cls(name, role, tuple(word.strip() for word in rest.split(",")) if rest else ())
        if not LABEL.fullmatch(name) or name != name.lower() or name == CA:
            raise ConfigError(
                f"{name!r} cannot name a {role}: lower-case letters, digits and inner dashes, "
                f"at most 63, and not {CA!r}"
            )
        party.alternatives()
        return party

    def alternatives(self) -> list[x509.GeneralName]:
        """DNS names and IP addresses of the certificate, each once."""
        loopback = () if self.role is Role.DEVICE else LOOPBACK
        return [_general_name(n) for n in dict.fromkeys((self.name, *self.names, *loopback))]


@dataclass(frozen=True, slots=True)
class Authority:
    """The certificate that all machines trust, and its key."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls, now: datetime) -> Self:
        """An authority of its own."""
        key = tls_key()
        name = _subject(AUTHORITY)
        builder = (
            _builder(name, name, key.public_key(), now, now + timedelta(days=LONGEST_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def from_pem(cls, cert: bytes, key: bytes) -> Self:
        """Read an authority.

        Raises:
            ValueError: The two cannot be read, or do not belong together.
        """
        found, its_key = x509.load_pem_x509_certificate(cert), read_key(key)
        if not isinstance(its_key, ec.EllipticCurvePrivateKey):
            raise ValueError("the key is not on an elliptic curve")
        if its_key.public_key() != found.public_key():
            raise ValueError("key and certificate do not belong together")
        return cls(found, its_key)

    def sign(
        self, party: Party, public_key: ec.EllipticCurvePublicKey, *, days: int, now: datetime
    ) -> x509.Certificate:
        """A certificate for ``party``, for ``days`` or as long as the authority is valid."""
        use = [ExtendedKeyUsageOID.SERVER_AUTH]
        if party.role is not Role.SERVER:  # an edge's node calls its own gateway
            use.append(ExtendedKeyUsageOID.CLIENT_AUTH)
        until = min(now + timedelta(days=days), self.cert.not_valid_after_utc)
        issuer = self.key.public_key()
        return (
            _builder(_subject(party.name), self.cert.subject, public_key, now, until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(use), critical=False)
            .add_extension(x509.SubjectAlternativeName(party.alternatives()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False
            )
            .sign(self.key, hashes.SHA256())
        )


def tls_key() -> ec.EllipticCurvePrivateKey:
    """A new key for TLS."""
    return ec.generate_private_key(ec.SECP256R1())


def cert_pem(cert: x509.Certificate) -> bytes:
    """The certificate as PEM."""
    return cert.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def supernode_pair(name: str) -> tuple[bytes, bytes]:
    """A new private and public key of a SuperNode, in OpenSSH form."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return private, public + f" {name}\n".encode()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey,
    since: datetime, until: datetime,
) -> x509.CertificateBuilder:  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(since - SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates,
        crl_sign=signs_certificates, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(text: str) -> x509.GeneralName:
    address: IPv4Address | IPv6Address
    with suppress(ValueError):
        address = ip_address(text)
        return x509.IPAddress(address)
    labels = text.split(".")
    good = all(LABEL.fullmatch(label) for label in labels) and len(text) <= 253
    if not good or labels[-1].isdigit():  # the last is a number: an address with a slip in it
        raise ConfigError(f"{text!r} is neither a DNS name (no wildcards) nor an IP address")
    return x509.DNSName(text.lower())


def read_key(pem: bytes) -> PrivateKeyTypes:
    """A private key for TLS, of any kind.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(str(error)) from error


def read_supernode_key(content: bytes) -> ec.EllipticCurvePrivateKey:
    """A SuperNode's private key.

    Raises:
        ValueError: It is not in OpenSSH form, not on an elliptic curve, or encrypted.
    """
    try:
        key = serialization.load_ssh_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"is no OpenSSH key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("is not on an elliptic curve")
    return key


def check_supernode_pub(content: bytes) -> None:
    """Refuse what ``flwr supernode register`` cannot read.

    Raises:
        ValueError: It is no public key in OpenSSH form, or not on an elliptic curve.
    """
    try:
        key = serialization.load_ssh_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"is no OpenSSH public key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("is not on an elliptic curve")
