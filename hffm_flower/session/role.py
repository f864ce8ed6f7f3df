"""What the role files of all machines have in common: how they are read and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, ValidationError

from hffm_flower.config import read_toml
from hffm_flower.errors import ConfigError
from hffm_flower.pki_folder import CA_CERT
from hffm_flower.pki_inspect import check_machine
from hffm_flower.sections import Section
from hffm_flower.session.addresses import check_distinct, check_form, check_loopback

LARGEST_INDEX = 2**31 - 1


class Role(Section):
    """What all machines have: certificates, or the word that there are none.

    Attributes:
        what: For messages.
        loopback: Settings where this machine listens for itself.
        listens: Settings where it listens for others.
        calls: Settings where it calls another machine.
        paths: Settings that are paths.
        files: What its folder of certificates holds at least.
    """

    what: ClassVar[str] = ""
    loopback: ClassVar[tuple[str, ...]] = ()
    listens: ClassVar[tuple[str, ...]] = ()
    calls: ClassVar[tuple[str, ...]] = ()
    paths: ClassVar[tuple[str, ...]] = ("certificates",)
    files: ClassVar[tuple[str, ...]] = (CA_CERT,)

    certificates: str = Field("", description="this machine's folder, made by hffm certs")
    insecure: bool = Field(False, description="no TLS and no keys: only on a machine of your own")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check a role's file.

        Raises:
            ConfigError: It cannot be read, or a value in it cannot work.
        """
        table = read_toml(path, "the role")
        try:
            return cls.made(table, path.resolve().parent)
        except ConfigError as error:
            raise type(error)(f"{path}: {error}", key=error.key) from error

    @classmethod
    def made(cls, table: dict[str, object], base: Path) -> Self:
        """Check a role whose paths are relative to ``base``.

        Raises:
            ConfigError: A value cannot work.
        """
        names = sorted(f.alias or n for n, f in cls.model_fields.items())
        for name in table:
            if name not in names and name.replace("_", "-") not in names:
                raise ConfigError(
                    f"{name}: unknown setting of {cls.what}; allowed: {', '.join(names)}", key=name
                )
        try:
            role = cls.model_validate(table)
        except ValidationError as error:
            raise _explained(error) from error
        role = role.model_copy(update=role.placed(base))
        role.check()
        return role

    def placed(self, base: Path) -> dict[str, Any]:
        """Paths as seen from anywhere, by the names of their settings."""
        return {name: str(base / home(value, name))
                for name in self.paths if (value := getattr(self, name))}  # fmt: skip

    def check(self) -> None:
        """Refuse addresses, keys and certificates that cannot work."""
        self._check_addresses()
        if self.insecure and self.certificates:
            raise ConfigError("insecure: goes with no certificates; leave one out", key="insecure")
        if not self.insecure and not self.certificates:
            raise ConfigError(
                "certificates: name this machine's folder (hffm certs make), or say "
                "'insecure = true' (--insecure)",
                key="certificates",
            )
        if self.folder is not None:
            try:
                check_machine(self.folder, self.files)
            except ConfigError as error:
                raise ConfigError(f"certificates: {error}", key="certificates") from error

    def _check_addresses(self) -> None:
        own: dict[str, str] = {}
        above: dict[str, str] = {}
        for name in (*self.listens, *self.loopback, *self.calls):
            value, key = str(getattr(self, name)), name.replace("_", "-")
            if not value and type(self).model_fields[name].default == "":
                continue
            check_form(key, value)
            if name in self.loopback:
                check_loopback(key, value)
            (above if name in self.calls else own)[key] = value
        check_distinct(own, above)

    @property
    def folder(self) -> Path | None:
        """Folder of the certificates."""
        return Path(self.certificates) if self.certificates else None

    @property
    def authority(self) -> Path | None:
        """Certificate of the authority; None without TLS."""
        return self.folder / CA_CERT if self.folder else None


def home(text: str, key: str) -> Path:
    """A path in which ``~`` and ``~name`` are folders of users.

    Raises:
        ConfigError: There is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{key}: {text!r}: {error}", key=key) from error


def _explained(error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    shown = "" if first["type"] == "missing" else f"{first['input']!r:.200} is not allowed: "
    return ConfigError(f"{key}: {shown}{first['msg']}", key=key)
