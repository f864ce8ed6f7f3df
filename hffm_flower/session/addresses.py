"""Addresses of one machine, ``HOST:PORT``: their form, and which of them are the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import combinations

from hffm_flower.errors import ConfigError

ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""Hosts that a server's certificate carries beside its own names."""
ALL = ("0.0.0.0", "[::]")


def check_form(key: str, value: str) -> None:
    """Refuse what is no address.

    Raises:
        ConfigError: It is not of the form HOST:PORT.
    """
    match = ADDRESS.fullmatch(value)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ConfigError(f"{key}: {value!r} is not of the form HOST:PORT", key=key)


def check_loopback(key: str, value: str) -> None:
    """Refuse an address that others reach.

    Raises:
        ConfigError: It is not on loopback.
    """
    if _split(value)[0] not in LOOPBACK:
        raise ConfigError(
            f"{key}: {value!r} is not on loopback, where it must be: it takes orders from "
            f"everyone who reaches it; allowed hosts: {', '.join(LOOPBACK)}",
            key=key,
        )


def check_distinct(own: Mapping[str, str], above: Mapping[str, str]) -> None:
    """Refuse addresses that cannot be had at one time.

    Args:
        own: Setting -> where this machine listens.
        above: Setting -> where it calls another one.

    Raises:
        ConfigError: Two of its own are one, or it would call itself.
    """
    for (one, a), (other, b) in combinations(own.items(), 2):
        if _clash(a, b):
            raise ConfigError(
                f"{one}: {a!r} is taken by {other} ({b!r}); give each an address of its own",
                key=one,
            )
    for key, address in above.items():
        for name, listens in own.items():
            here = address == listens or _split(address)[0] in (*LOOPBACK, *ALL)
            if here and _clash(address, listens):
                raise ConfigError(
                    f"{key}: {address!r} is this machine's own {name} ({listens!r}); name that "
                    "of the tier above",
                    key=key,
                )


def _clash(one: str, other: str) -> bool:
    """Whether two programs of one machine cannot listen at both."""
    (host, port), (host2, port2) = _split(one), _split(other)
    return port == port2 and bool(
        _hosts(host) & _hosts(host2) or _covers(host, host2) or _covers(host2, host)
    )


def _hosts(host: str) -> set[str]:
    return {"127.0.0.1", "[::1]"} if host == "localhost" else {host}


def _covers(host: str, other: str) -> bool:
    return host == "[::]" or (host == "0.0.0.0" and not other.startswith("["))


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.lower(), int(port)
