"""A process has one server for each of its addresses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import channels
from clients.channels import NodeConfig, close_channels, peer_address, peer_channel
from hffm_flower.errors import ConfigError
from tests.support.deployment import free_port


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    close_channels()


def node(**more: str | int | bool) -> NodeConfig:
    return {"peer-address": f"127.0.0.1:{free_port()}", "insecure": True, **more}


def test_a_channel_stays_until_all_are_closed() -> None:
    config = node()
    channel = peer_channel(config, 3)
    assert peer_channel(config, 3) is channel
    assert f"127.0.0.1:{channel.port}" == peer_address(config)
    close_channels()
    assert peer_channel(config, 3) is not channel


def test_devices_of_one_process_have_their_own() -> None:
    one, other = peer_channel(node(), 0), peer_channel(node(), 1)
    assert one.port != other.port


def test_an_address_goes_to_the_device_that_is_there_now() -> None:
    config = node()
    peer_channel(config, 3)
    assert peer_channel(config, 4).index == 4


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({}, "no peer-address"),
        ({"peer-address": "127.0.0.1:1"}, "need TLS credentials"),
        (node(certificates="/nowhere"), "cannot read"),
        (node(**{"peer-message-mib": 0}), "do not fit"),
    ],
)
def test_settings_that_cannot_work(config: NodeConfig, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        peer_channel(config, 0)


def test_an_address_that_stays_taken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "PATIENCE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="cannot listen"):
            peer_channel({"peer-address": address, "insecure": True}, 0)


def test_an_address_that_is_freed_is_taken() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{taken.getsockname()[1]}"
    threading.Timer(0.3, taken.close).start()
    assert peer_channel({"peer-address": address, "insecure": True}, 0).index == 0


def test_certificates_and_insecure_do_not_go_together(tmp_path: Path) -> None:
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).write_text("-----BEGIN -----", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot have TLS credentials and be insecure"):
        peer_channel(node(certificates=str(tmp_path)), 0)
