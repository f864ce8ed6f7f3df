"""Time of pricing one edge round, by method and number of transfers.

Run: ``python -m benchmarks.pricing [DEVICES]``. 300 transfers should take less than 10 ms.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from hffm_flower.ledger import Phase, Transfer, link_between
from hffm_flower.placement import Site, place
from hffm_flower.wireless.network import Network
from hffm_flower.wireless.pricing import price
from hffm_flower.wireless.radio import Radio

BYTES, HEADER_BYTES = 400_000, 2_000


def row(phase: Phase, src: str, dst: str, step: int = 0) -> Transfer:
    """One message of the usual size."""
    link = link_between(src, dst)
    return Transfer(1, phase, step, src, dst, link, HEADER_BYTES, ("adapter/a",), (BYTES,))


def star(network: Network) -> list[Transfer]:
    """Every device to the cloud and back, through its edge."""
    rows = []
    for device, edge in enumerate(network.topology.edge_of()):
        here, there = f"device/{device}", f"edge/{edge}"
        rows += [row(Phase.DOWN, "cloud", there), row(Phase.DOWN, there, here)]
        rows += [row(Phase.UP, here, there), row(Phase.UP, there, "cloud")]
    return rows


def gossip(network: Network) -> list[Transfer]:
    """Two rounds over all D2D links, then every device to its edge."""
    rows = [
        row(Phase.EXCHANGE, f"device/{a}", f"device/{b}", step)
        for step in (0, 1)
        for a, b in network.topology.directed()
    ]
    edges = network.topology.edge_of()
    return rows + [row(Phase.UP, f"device/{d}", f"edge/{e}") for d, e in enumerate(edges)]


def best_s(work: Callable[[], object], times: int = 20) -> float:
    """Shortest time of a few [s]."""
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return min(spent)


def main(devices: int = 75) -> None:
    """Print milliseconds per round."""
    site = Site(devices=devices, edges=max(1, devices // 5))
    network = Network.of(place("clustered", site, 1), Radio(), 1)
    block, work = network.block(1), dict.fromkeys(range(devices), 1e11)
    print(
        f"drawing the channel of {devices} devices: {best_s(lambda: network.block(1)) * 1e3:.2f} ms"
    )
    for method in (star, gossip):
        rows = method(network)
        spent_ms = best_s(lambda: price(rows, block, work)) * 1e3  # noqa: B023
        print(f"{method.__name__:8s} {len(rows):6d} transfers {spent_ms:8.2f} ms")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
