"""What one machine of a tree is: read from one TOML, turned into the programs that it needs.

Addresses are ``HOST:PORT``. Paths are relative to the file. A SuperLink and a gateway are on
loopback, always; what others reach is the guard, at ``listen``.
"""

from __future__ import annotations

import glob
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from hffm_flower.errors import ConfigError
from hffm_flower.pki import check_supernode_pub
from hffm_flower.pki_folder import CA_CERT, CERT, KEY, SUPERNODE_KEY, SUPERNODE_PUB
from hffm_flower.sections import Words
from hffm_flower.session.bundle import DEVICE, PROXY, program
from hffm_flower.session.processes import HFFM, Program
from hffm_flower.session.role import LARGEST_INDEX, Role, home


class LinkRole(Role):
    """A machine with a SuperLink: what is below it reaches the guard at ``listen``."""

    loopback: ClassVar[tuple[str, ...]] = ("superlink",)
    listens: ClassVar[tuple[str, ...]] = ("listen",)
    paths: ClassVar[tuple[str, ...]] = ("certificates", "database")
    files: ClassVar[tuple[str, ...]] = (CA_CERT, CERT, KEY)

    listen: str = Field("0.0.0.0:8000", description="the guard, which the nodes below reach")
    superlink: str = Field("127.0.0.1:8001", description="Flower's SuperLink, on loopback")
    nodes: Words = Field((), description="public keys of the nodes below, *.pub, to register")
    database: str = Field("", description="file of the SuperLink's state; empty: memory")

    def placed(self, base: Path) -> dict[str, Any]:
        """Paths as seen from anywhere; of ``nodes`` the files that its patterns name."""
        keys = tuple(str(key) for pattern in self.nodes for key in _matches(base, pattern))
        return {**super().placed(base), "nodes": keys}

    def check(self) -> None:
        """Refuse, besides, keys to register and a place for the state that cannot work."""
        super().check()
        for key in self.public_keys():
            try:
                check_supernode_pub(key.read_bytes())
            except (OSError, ValueError) as error:
                why = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else error
                raise ConfigError(
                    f"nodes: {str(key)!r} {why}; name the {SUPERNODE_PUB} of nodes (hffm certs)",
                    key="nodes",
                ) from error
        state = Path(self.database)
        if self.database and (not os.path.isdir(state.parent) or os.path.isdir(state)):
            raise ConfigError(
                f"database: {self.database!r} is not a file in a folder that exists; make "
                "the folder, or leave the setting out",
                key="database",
            )

    def public_keys(self) -> list[Path]:
        """Public keys to register."""
        return [Path(key) for key in self.nodes]

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


def _matches(base: Path, pattern: str) -> list[Path]:
    """Files that a pattern names; what stands in ``base`` itself is no pattern.

    Raises:
        ConfigError: There is none.
    """
    first, *rest = Path(pattern).parts or ("",)
    user = first.startswith("~")
    root, name = (home(first, "nodes"), str(Path(*rest))) if user else (base, pattern)
    exact = [root / name] if os.path.isfile(root / name) else []
    found = exact or sorted(
        root / match for match in glob.glob(name, root_dir=root) if os.path.isfile(root / match)
    )
    if not found:
        raise ConfigError(
            f"nodes: there is no file {pattern!r} in {str(root)!r}; name public keys of nodes "
            f"({SUPERNODE_PUB}, made by hffm certs)",
            key="nodes",
        )
    return found


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
    loopback: ClassVar[tuple[str, ...]] = ("superlink", "gateway", "stock_node")
    calls: ClassVar[tuple[str, ...]] = ("upstream",)
    paths: ClassVar[tuple[str, ...]] = (*LinkRole.paths, "config", "out", "state")
    files: ClassVar[tuple[str, ...]] = (CA_CERT, CERT, KEY, SUPERNODE_KEY)

    index: int = Field(
        ge=0, le=LARGEST_INDEX, strict=True, description="which edge of the tree this is"
    )
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
    paths: ClassVar[tuple[str, ...]] = ("certificates", "own_data", "timings")
    loopback: ClassVar[tuple[str, ...]] = ("stock_node",)
    listens: ClassVar[tuple[str, ...]] = ("peer_address",)
    calls: ClassVar[tuple[str, ...]] = ("superlink",)
    files: ClassVar[tuple[str, ...]] = (CA_CERT, CERT, KEY, SUPERNODE_KEY)

    index: int = Field(
        ge=0, le=LARGEST_INDEX, strict=True, description="which device of the run this is"
    )
    superlink: str = Field(description="the guard of its edge")
    peer_address: str = Field("", description="where its peers reach it; empty: no peer channel")
    own_data: str = Field(
        "", description="TOML file whose [data.<task>] tables name its own data; may be this one"
    )
    data: dict[str, object] = Field(default_factory=dict, description="see docs/own-data.md")
    stock_node: str = Field("", description="HOST:PORT on loopback: use flower-supernode")
    timings: str = Field("", description="file for when its messages went; empty: none")

    def check(self) -> None:
        """Refuse, besides, data of its own that nobody would read."""
        super().check()
        if self.own_data and not os.path.isfile(self.own_data):
            raise ConfigError(
                f"own-data: there is no file {self.own_data!r}; name a TOML file with "
                "[data.<task>] tables, or leave the setting out",
                key="own-data",
            )
        if self.data and not self.own_data:
            raise ConfigError(
                f"data: nothing reads [data.{min(self.data)}] unless own-data names its file, "
                "which may be this one",
                key="data",
            )

    def node(self, name: str) -> Program:
        """The node towards its edge."""
        facts: dict[str, str | int] = {"partition-id": self.index}
        if self.peer_address:
            facts["peer-address"] = self.peer_address
        if self.own_data:
            facts["own-data"] = self.own_data
        if self.timings:
            facts["timings"] = self.timings
        return node_program(self, name, self.superlink, facts, app=DEVICE, stock=self.stock_node)
