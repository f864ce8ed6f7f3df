"""The ``hffm`` command."""

from __future__ import annotations

from hffm_flower.cli.app import main

__all__ = ["main"]
