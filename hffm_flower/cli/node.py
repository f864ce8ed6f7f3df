"""``hffm node``: a long-lived node, in place of ``flower-supernode``."""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import threading
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hffm_flower.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec
    from flwr.clientapp import ClientApp

APP = "clients.client_app:app"
PAIR = re.compile(r"""([\w.-]+)\s*=\s*("[^"]*"|'[^']*'|[^\s"']+)(?:\s+|$)""")
ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})")


def node_command(
    superlink: Annotated[str, typer.Option(metavar="HOST:PORT", help="The SuperLink's address.")],
    node_config: Annotated[
        str, typer.Option(metavar="'KEY=VALUE ...'", help="What this node is: partition-id=K.")
    ] = "",
    root_certificates: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Authority that signed its certificate.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No TLS: everyone on the way reads and writes.")
    ] = False,
    auth_supernode_private_key: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Registered key (OpenSSH form).")
    ] = None,
    app: Annotated[str, typer.Option(metavar="MODULE:ATTR", help="The ClientApp.")] = APP,
    online: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Is there while the SuperLink knows us.")
    ] = None,
) -> None:
    """Answer a SuperLink's messages in this process, until Ctrl-C or SIGTERM."""
    address = _address(superlink)
    config = parse_node_config(node_config)
    if insecure and (root_certificates or auth_supernode_private_key):
        raise ConfigError("--insecure goes with neither certificates nor keys: both need TLS")
    trusted = _certificates(_read("--root-certificates", root_certificates))
    key = _private_key(_read("--auth-supernode-private-key", auth_supernode_private_key))
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every request
    loaded = load_app(app)
    from cryptography.hazmat.primitives.asymmetric import ec

    from clients.flower_internals import SuperLink
    from clients.runner import NodeRunner

    where = SuperLink(
        address, key or ec.generate_private_key(ec.SECP384R1()), registered=key is not None,
        insecure=insecure, root_certificates=trusted,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):  # the usual end: the node has left by now
        NodeRunner(where.connect, loaded, config, online=online).run(threading.Event())
    logging.getLogger(__name__).info("stopped")


def parse_node_config(text: str) -> dict[str, str | int | float | bool]:
    """Read ``key=value`` pairs with TOML values, as ``flower-supernode --node-config`` does.

    Raises:
        ConfigError: A part is no such pair, or a value is no string, number or boolean.
    """
    pairs, at = [], 0
    words = text.strip()
    while at < len(words):
        match = PAIR.match(words, at)
        if match is None:
            raise ConfigError(f"--node-config: {words[at:]!r} is not of the form key=value ...")
        pairs.append(f'"{match[1]}" = {match[2]}')
        at = match.end()
    try:
        config = tomllib.loads("\n".join(pairs))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"--node-config {text!r}: {error}; texts need quotes inside: 'place=\"attic\"'"
        ) from error
    for name, value in config.items():
        if not isinstance(value, str | int | float | bool):
            raise ConfigError(f"--node-config: {name} is no string, number or boolean")
    return config


def load_app(reference: str) -> ClientApp:
    """Import a ClientApp from ``module:attribute``.

    Raises:
        ConfigError: There is none.
    """
    from flwr.clientapp import ClientApp

    module, colon, attribute = reference.partition(":")
    if not colon or not module or not attribute:
        raise ConfigError(f"--app {reference!r} is not of the form module:attribute")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--app {reference!r} cannot be loaded: {error}") from error
    if not isinstance(found, ClientApp):
        raise ConfigError(f"--app {reference!r} is a {type(found).__name__}, not a ClientApp")
    return found


def _address(text: str) -> str:
    match = ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ConfigError(f"--superlink {text!r} is not of the form HOST:PORT, without 'http://'")
    return text


def _read(option: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"{option} {str(path)!r} cannot be read: {error.strerror}") from error


def _certificates(content: bytes | None) -> bytes | None:
    from cryptography.x509 import load_pem_x509_certificates

    if content is not None:
        try:
            load_pem_x509_certificates(content)
        except ValueError as error:
            raise ConfigError(f"--root-certificates holds no PEM certificate: {error}") from error
    return content


def _private_key(content: bytes | None) -> ec.EllipticCurvePrivateKey | None:
    if content is None:
        return None
    from hffm_flower.pki import read_supernode_key

    try:
        return read_supernode_key(content)
    except ValueError as error:
        raise ConfigError(f"--auth-supernode-private-key {error}") from error
