"""Machines of a small deployment, for tests of certificates."""

from __future__ import annotations

from hffm_flower.pki import Party, Role

PARTIES = [
    Party.parse("cloud=cloud.example,10.0.0.1", Role.SERVER),
    Party.parse("edge-0", Role.EDGE),
    Party.parse("device-0=127.0.0.1,::1", Role.DEVICE),
    Party.parse("device-1=127.0.0.1", Role.DEVICE),
]
