"""The package's version, which all nodes of a run must share."""

from __future__ import annotations

__version__ = "0.1.0"
