"""What can go wrong, as a tree.

HffmError
|-- ConfigError        a setting is wrong: found before any work starts, exit code 2
|   `-- OutputError    the output directory cannot be used
|-- AssetError         a packaged asset is missing or is not the one we know
|-- ModuleError        module states that do not fit together
|-- ProtocolError      a node answered something that this version cannot use
|-- DivergedError    training or a server optimiser left the finite numbers
|-- QuorumError        too few nodes answered before the deadline
|-- PeerError          a device refused another one's message
`-- Interrupted        the user asked the run to stop

A faulty node is data (logged, dropped, its mass renormalised), never an
exception; a faulty setting is an exception before round 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HffmError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(HffmError):
    """A setting that cannot work.

    Attributes:
        key: Dotted name of the setting, e.g. ``tree.edges``.
    """

    def __init__(self, message: str, *, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class OutputError(ConfigError):
    """The output directory is not writable or already holds a run."""


class AssetError(HffmError):
    """An asset package is missing, or its content has another hash than the known one."""


class ModuleError(HffmError):
    """Module states that do not fit together: other tensors, shapes or dtypes."""


class ProtocolError(HffmError):
    """A node's answer does not fit this version of the package."""


class DivergedError(HffmError):
    """A loss or a module is not finite any more."""


class QuorumError(HffmError):
    """Too few nodes answered before the deadline."""


class PeerError(HffmError):
    """A message between two devices that the receiver does not take."""


class Interrupted(HffmError):
    """The run was asked to stop; what was finished is kept."""


def one_of(what: str, value: str, allowed: Iterable[str], *, key: str = "", more: str = "") -> str:
    """Return ``value`` if it is one of ``allowed``.

    Args:
        what: What ``value`` names.
        value: What was given.
        allowed: All names.
        key: The setting that it comes from.
        more: End of the message.

    Raises:
        ConfigError: It is not; the message lists what is allowed and the nearest name.
    """
    names = list(allowed)
    if value in names:
        return value
    near = difflib.get_close_matches(value, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ConfigError(f"unknown {what} {value!r}{hint}; allowed: {', '.join(names)}{more}", key=key)
