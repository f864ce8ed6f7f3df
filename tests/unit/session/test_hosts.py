"""Machines of a tree that are all this one."""

from __future__ import annotations

from pathlib import Path

from hffm_flower.session.hosts import Loopback
from hffm_flower.session.local_roles import Kind, local_roles
from hffm_flower.session.processes import listening


def test_addresses_of_loopback_are_each_given_once() -> None:
    hosts = Loopback()
    given = [hosts.free("device-0", inside=bool(n % 2)) for n in range(40)]
    assert len(set(given)) == 40
    assert all(address.startswith("127.0.0.1:") for address in given)
    assert not any(map(listening, given))
    assert hosts.command("cloud", ("a", "b")) == ("a", "b")


def test_roles_of_machines_with_timings(tmp_path: Path) -> None:
    class Timed(Loopback):
        timings = tmp_path / "timings"

    roles = local_roles(2, [[0, 1]], tmp_path, Kind(insecure=True, hosts=Timed()), peers=True)
    assert [d.timings for d in roles.devices] == [
        str(tmp_path / "timings" / f"device-{k}.jsonl") for k in (0, 1)
    ]
    words = " ".join(roles.devices[1].node("device-1").argv)
    assert f'timings="{tmp_path}/timings/device-1.jsonl"' in words
    assert roles.devices[0].peer_address
