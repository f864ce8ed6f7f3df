"""A ClientApp that answers nothing and loads nothing: for nodes that get no further."""

from __future__ import annotations

from flwr.clientapp import ClientApp

app = ClientApp()
