"""What one machine of a tree is: read from one TOML, turned into the programs that it needs.

Addresses are ``HOST:PORT``. Paths are relative to the file. A SuperLink and a gateway are on
loopback, always; what others reach is the guard, at ``listen``.
"""

from __future__ import annotations

import glob
import re
import sys
import tomllib
from pathlib import Path
from typing import ClassVar, Self, TypeVar

from pydantic import Field, ValidationError

from hffm_flower.errors import ConfigError
from hffm_flower.pki_folder import CA_CERT, CERT, KEY, SUPERNODE_KEY
from hffm_flower.sections import Section, Words
from hffm_flower.session.bundle import DEVICE, PROXY, program
from hffm_flower.session.processes import HFFM, Program

ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})")
LOOPBACK = re.compile(r"(127(\.\d{1,3}){3}|localhost|\[::1\]):\d+")

SomeRole = TypeVar("SomeRole", bound="Role")


class Role(Section):
    """What all machines have: certificates, or the word that there are none."""

    what: ClassVar[str] = ""
    loopback: ClassVar[tuple[str, ...]] = ()
    addresses: ClassVar[tuple[str, ...]] = ()
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
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the role {str(path)!r}: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
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
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ConfigError(f"{key}: {first['msg']}", key=key) from error
        updates: dict[str, object] = {}
        for name in cls.paths:
            value = getattr(role, name)
            if isinstance(value, tuple):
                updates[name] = tuple(str(base / Path(v).expanduser()) for v in value)
            elif value:
                updates[name] = str(base / Path(value).expanduser())
        role = role.model_copy(update=updates)
        role.check()
        return role

    def check(self) -> None:
        """Refuse addresses and certificates that cannot work."""
        for name in (*self.addresses, *self.loopback):
            value = getattr(self, name)
            match = ADDRESS.fullmatch(value)
            key = name.replace("_", "-")
            if value and (match is None or not 0 < int(match[2]) < 65536):
                raise ConfigError(f"{key}: {value!r} is not of the form HOST:PORT", key=key)
            if name in self.loopback and not LOOPBACK.fullmatch(value):
                raise ConfigError(
                    f"{key}: {value!r} is not on loopback (127.0.0.1:PORT), where it must be: it "
                    "takes orders from everyone who reaches it",
                    key=key,
                )
        if self.insecure and self.certificates:
            raise ConfigError("insecure: goes with no certificates; leave one out", key="insecure")
        if not self.insecure and not self.certificates:
            raise ConfigError(
                "certificates: name this machine's folder (hffm certs make), or say "
                "'insecure = true' (--insecure)",
                key="certificates",
            )
        for file in self.files if self.certificates else ():
            if not (Path(self.certificates) / file).is_file():
                raise ConfigError(
                    f"certificates: {self.certificates!r} holds no {file}; it is made by hffm "
                    f"certs for {self.what}",
                    key="certificates",
                )

    @property
    def folder(self) -> Path | None:
        """Folder of the certificates."""
        return Path(self.certificates) if self.certificates else None

    @property
    def authority(self) -> Path | None:
        """Certificate of the authority; None without TLS."""
        return self.folder / CA_CERT if self.folder else None


class LinkRole(Role):
    """A machine with a SuperLink: what is below it reaches the guard at ``listen``."""

    loopback: ClassVar[tuple[str, ...]] = ("superlink",)
    addresses: ClassVar[tuple[str, ...]] = ("listen",)
    paths: ClassVar[tuple[str, ...]] = ("certificates", "nodes", "database")
    files: ClassVar[tuple[str, ...]] = (CA_CERT, CERT, KEY)

    listen: str = Field("0.0.0.0:8000", description="the guard, which the nodes below reach")
    superlink: str = Field("127.0.0.1:8001", description="Flower's SuperLink, on loopback")
    nodes: Words = Field((), description="public keys of the nodes below, *.pub, to register")
    database: str = Field("", description="file of the SuperLink's state; empty: memory")

    def public_keys(self) -> list[Path]:
        """Public keys to register.

        Raises:
            ConfigError: A pattern matches no file.
        """
        found: list[Path] = []
        for pattern in self.nodes:
            matches = sorted(glob.glob(pattern))
            if not matches:
                raise ConfigError(f"nodes: there is no file {pattern!r}", key="nodes")
            found += [Path(m) for m in matches]
        return found

    def link_programs(self, name: str) -> list[Program]:
        """The SuperLink and its guard."""
        host, _, port = self.superlink.rpartition(":")
        tls = ["--insecure"]
        if self.folder is not None:
            own = self.folder
            tls = ["--ssl-certfile", str(own / CERT), "--ssl-keyfile", str(own / KEY),
                   "--ssl-ca-certfile", str(own / CA_CERT), "--enable-supernode-auth"]  # fmt: skip
        state = ["--database", self.database] if self.database else []
        link = (
            program("flower-superlink"), *tls, "--host", host.strip("[]"), "--port", port,
            *state, "--disable-runtime-dependency-installation",
        )  # fmt: skip
        guard = (sys.executable, "-m", "hffm_flower.session.guard", self.listen, self.superlink,
                 *([str(self.folder)] if self.folder else []))  # fmt: skip
        return [Program(f"{name}-superlink", link, last=True),
                Program(f"{name}-guard", guard, last=True)]  # fmt: skip


class CloudRole(LinkRole):
    """The cloud."""

    what: ClassVar[str] = "a cloud"


def node_program(
    role: Role, name: str, superlink: str, config: dict[str, str | int], *, app: str, stock: str
) -> Program:
    """A node of either kind.

    Args:
        role: Whose certificates it has.
        name: Of the program.
        superlink: The guard of the tier above.
        config: What the node is.
        app: Its ClientApp; a stock node takes that of the run's bundle.
        stock: Address of a stock node's own runtime interface; empty: our long-lived node.
    """
    own = role.folder
    facts = {**config, **({"certificates": str(own)} if own else {})}
    words = [
        f'{k}="{v}"' if isinstance(v, str) else f"{k}={v}" for k, v in facts.items() if v != ""
    ]
    words += [] if own else ["insecure=true"]
    tls = ["--insecure"]
    if own is not None:
        tls = ["--root-certificates", str(own / CA_CERT),
               "--auth-supernode-private-key", str(own / SUPERNODE_KEY)]  # fmt: skip
    common = ["--superlink", superlink, *tls, "--node-config", " ".join(words)]
    if not stock:
        return Program(name, (*HFFM, "node", "--app", app, *common))
    host, _, port = stock.rpartition(":")
    runtime = ["--host", host.strip("[]"), "--port", port]
    return Program(name, (program("flower-supernode"), *common, *runtime))


class EdgeRole(LinkRole):
    """An edge: a SuperLink for its devices, and a node of the cloud."""

    what: ClassVar[str] = "an edge"
    loopback: ClassVar[tuple[str, ...]] = ("superlink", "gateway")
    addresses: ClassVar[tuple[str, ...]] = ("listen", "upstream", "stock_node")
    paths: ClassVar[tuple[str, ...]] = (*LinkRole.paths, "config", "out", "state")
    files: ClassVar[tuple[str, ...]] = (CA_CERT, CERT, KEY, SUPERNODE_KEY)

    index: int = Field(ge=0, description="which edge of the tree this is")
    upstream: str = Field(description="the cloud's guard")
    gateway: str = Field("127.0.0.1:8002", description="between the edge's two sides")
    stock_node: str = Field("", description="HOST:PORT on loopback: use flower-supernode")
    config: str = Field("", description="settings of the run, the same file as the cloud's")
    out: str = Field("runs/edge", description="folder of this edge's results, one per run")
    state: str = Field("", description="where a restarted edge goes on from; empty: the cache")

    def node(self, name: str) -> Program:
        """The node towards the cloud."""
        facts: dict[str, str | int] = {"partition-id": self.index, "gateway": self.gateway}
        return node_program(self, name, self.upstream, facts, app=PROXY, stock=self.stock_node)

    def settings(self) -> dict[str, object]:
        """The ``deploy`` table of this edge's ServerApp."""
        return {
            "deploy.tier": "edge", "deploy.edge": self.index, "deploy.gateway": self.gateway,
            "deploy.certificates": self.certificates, "deploy.insecure": self.insecure,
        }  # fmt: skip


class DeviceRole(Role):
    """A device: a node of its edge, and a peer of the others there."""

    what: ClassVar[str] = "a device"
    paths: ClassVar[tuple[str, ...]] = ("certificates", "own_data")
    addresses: ClassVar[tuple[str, ...]] = ("superlink", "peer_address", "stock_node")
    files: ClassVar[tuple[str, ...]] = (CA_CERT, CERT, KEY, SUPERNODE_KEY)

    index: int = Field(ge=0, description="which device of the run this is")
    superlink: str = Field(description="the guard of its edge")
    peer_address: str = Field("", description="where its peers reach it; empty: no peer channel")
    own_data: str = Field(
        "", description="TOML file whose [data.<task>] tables name its own data; may be this one"
    )
    data: dict[str, object] = Field(default_factory=dict, description="see docs/own-data.md")
    stock_node: str = Field("", description="HOST:PORT on loopback: use flower-supernode")

    def node(self, name: str) -> Program:
        """The node towards its edge."""
        facts: dict[str, str | int] = {"partition-id": self.index}
        if self.peer_address:
            facts["peer-address"] = self.peer_address
        if self.own_data:
            facts["own-data"] = self.own_data
        return node_program(self, name, self.superlink, facts, app=DEVICE, stock=self.stock_node)
