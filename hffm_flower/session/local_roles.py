"""The roles of a whole tree on one machine: free loopback addresses, certificates of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hffm_flower.pki import Party, Role
from hffm_flower.pki_folder import SUPERNODE_PUB, create
from hffm_flower.session.processes import free_addresses
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
    """

    stock: bool = False
    insecure: bool = False


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
    edge_names = [f"edge-{e}" for e in range(len(clusters))]
    names = [f"device-{k}" for k in range(devices)]
    if not kind.insecure:
        parties = [Party("cloud", Role.SERVER), *(Party(n, Role.EDGE) for n in edge_names),
                   *(Party(n, Role.DEVICE, ("127.0.0.1",)) for n in names)]  # fmt: skip
        create(folder / PKI, parties, days=DAYS)
    free = iter(free_addresses(2 + 4 * len(clusters) + 2 * devices))

    def own(name: str, below: Sequence[str] = ()) -> Mapping[str, object]:
        """A role's certificates, and the keys of the nodes below it."""
        if kind.insecure:
            return {"insecure": True}
        keys = {"nodes": [f"{PKI}/{n}/{SUPERNODE_PUB}" for n in below]} if below else {}
        return {"certificates": f"{PKI}/{name}", **keys}

    def stock() -> Mapping[str, object]:
        return {"stock-node": next(free)} if kind.stock else {}

    table: dict[str, object] = {"listen": next(free), "superlink": next(free)}
    cloud = CloudRole.made({**table, **own("cloud", edge_names or names)}, folder)
    above = [cloud.listen] * devices
    edges = []
    for e, name in enumerate(edge_names):
        table = {
            "index": e, "upstream": cloud.listen, "listen": next(free), "superlink": next(free),
            "gateway": next(free), "database": f"{name}.db", "out": f"out/{name}", **stock(),
        }  # fmt: skip
        below = [names[k] for k in clusters[e]]
        edges.append(EdgeRole.made({**table, **own(name, below)}, folder))
        for k in clusters[e]:
            above[k] = edges[e].listen
    leaves = []
    for k, name in enumerate(names):
        peer = {"peer-address": next(free)} if peers else {}
        table = {"index": k, "superlink": above[k], **peer, **stock()}
        leaves.append(DeviceRole.made({**table, **own(name)}, folder))
    return LocalRoles(cloud, tuple(edges), tuple(leaves))
