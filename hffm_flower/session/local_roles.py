"""The roles of a whole tree on one machine: free addresses, certificates of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hffm_flower.pki import Party, Role
from hffm_flower.pki_folder import SUPERNODE_PUB, create
from hffm_flower.session.hosts import Hosts, Loopback
from hffm_flower.session.roles import CloudRole, DeviceRole, EdgeRole

PKI = "pki"
DAYS = 30
"""How long the certificates of a tree on one machine are valid [d]."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How a tree is brought up.

    Attributes:
        stock: With ``flower-supernode`` in place of the long-lived nodes.
        insecure: Without TLS and keys.
        hosts: Where its programs run.
    """

    stock: bool = False
    insecure: bool = False
    hosts: Hosts = field(default_factory=Loopback)


@dataclass(frozen=True, slots=True)
class LocalRoles:
    """Roles by index; without edges the devices hang on the cloud.

    Attributes:
        cloud: The cloud.
        edges: Every edge.
        devices: Every device.
    """

    cloud: CloudRole
    edges: tuple[EdgeRole, ...]
    devices: tuple[DeviceRole, ...]


def local_roles(
    devices: int, clusters: Sequence[Sequence[int]], folder: Path, kind: Kind, *, peers: bool
) -> LocalRoles:
    """Make the roles of a tree, and the certificates that they name.

    Args:
        devices: How many there are.
        clusters: Devices of each edge; none: no edges.
        folder: For certificates, databases and the edges' results.
        kind: Nodes and security.
        peers: Whether devices have a peer channel.
    """
    hosts = kind.hosts
    edge_names = [f"edge-{e}" for e in range(len(clusters))]
    names = [f"device-{k}" for k in range(devices)]
    if not kind.insecure:
        machines = [("cloud", Role.SERVER), *((n, Role.EDGE) for n in edge_names),
                    *((n, Role.DEVICE) for n in names)]  # fmt: skip
        parties = [Party(name, role, (hosts.ip(name),)) for name, role in machines]
        create(folder / PKI, parties, days=DAYS)

    def own(name: str, below: Sequence[str] = ()) -> Mapping[str, object]:
        """A role's certificates, and the keys of the nodes below it."""
        if kind.insecure:
            return {"insecure": True}
        keys = {"nodes": [f"{PKI}/{n}/{SUPERNODE_PUB}" for n in below]} if below else {}
        return {"certificates": f"{PKI}/{name}", **keys}

    def link(name: str) -> dict[str, object]:
        return {"listen": hosts.free(name), "superlink": hosts.free(name, inside=True)}

    def stock(name: str) -> Mapping[str, object]:
        return {"stock-node": hosts.free(name, inside=True)} if kind.stock else {}

    cloud = CloudRole.made({**link("cloud"), **own("cloud", edge_names or names)}, folder)
    above = [cloud.listen] * devices
    edges = []
    for e, name in enumerate(edge_names):
        table: dict[str, object] = {
            "index": e, "upstream": cloud.listen, **link(name), **stock(name),
            "gateway": hosts.free(name, inside=True), "database": f"{name}.db",
            "out": f"out/{name}",
        }  # fmt: skip
        below = [names[k] for k in clusters[e]]
        edges.append(EdgeRole.made({**table, **own(name, below)}, folder))
        for k in clusters[e]:
            above[k] = edges[e].listen
    leaves = []
    for k, name in enumerate(names):
        table = {"index": k, "superlink": above[k], **stock(name)}
        if peers:
            table["peer-address"] = hosts.free(name)
        if hosts.timings is not None:
            table["timings"] = str(hosts.timings / f"{name}.jsonl")
        leaves.append(DeviceRole.made({**table, **own(name)}, folder))
    return LocalRoles(cloud, tuple(edges), tuple(leaves))
