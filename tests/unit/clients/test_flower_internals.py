"""What is taken from Flower's inside is still there, and the link made of it holds."""

from __future__ import annotations

import ast
import importlib
import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.common.serde import fab_to_proto, run_to_proto
from flwr.proto import heartbeat_pb2
from flwr.proto.fab_pb2 import GetFabResponse
from flwr.proto.run_pb2 import GetRunResponse
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
)
from flwr.supercore.run import Run

from clients import flower_internals
from clients.flower_internals import SuperLink
from clients.link import LinkLost, Refused, RunFacts, RunOver
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from tests.support.deployment import ROOT, free_port
from tests.support.fleet import Answer, Loop, Server, error, link_to

CLIENTS = Path(flower_internals.__file__).parent
PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation")


def imports_of(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def private(path: Path) -> list[tuple[str, str]]:
    return [
        (module, name) for module, name in imports_of(path)
        if module.split(".")[0] == "flwr" and module not in PUBLIC
    ]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), private(CLIENTS / "flower_internals.py"))
def test_flower_still_has_it(module: str, name: str) -> None:
    flwr = importlib.import_module("flwr")
    hint = f"Flower {flwr.__version__} has no {module}.{name}; see clients/flower_internals.py"
    try:
        found = hasattr(importlib.import_module(module), name)
    except ImportError as error:
        raise AssertionError(hint) from error
    assert found, hint


def test_only_one_module_of_the_clients_looks_inside() -> None:
    inside = {path.name for path in CLIENTS.rglob("*.py") if private(path)}
    assert inside == {"flower_internals.py"}


def test_a_node_without_a_registered_key_registers_and_leaves() -> None:
    server = Server()
    link = link_to(server)
    assert link.node_id == 7
    assert link.receive() is None
    link.close(leave=True)
    assert server.asked == [
        "register-node", "activate-node", "pull-messages", "deactivate-node", "unregister-node",
    ]  # fmt: skip
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_a_node_with_a_registered_key_stays_registered() -> None:
    server = Server()
    link_to(server, registered=True).close(leave=True)
    assert server.asked == ["activate-node", "deactivate-node"]


def test_a_lost_link_tells_nobody_and_may_find_its_key_registered() -> None:
    server = Server(register_node=[error(412, ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE)])
    link_to(server).close(leave=False)
    assert server.asked == ["register-node", "activate-node"]


def test_leaving_a_superlink_that_is_gone_is_no_error() -> None:
    link_to(Server(deactivate_node=[httpx.ConnectError("refused")])).close(leave=True)


UNTRUSTED = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get issuer"


@pytest.mark.parametrize(
    ("answers", "kind", "text"),
    [
        ({"register_node": [httpx.ConnectError("refused")]}, LinkLost, "no SuperLink at link.ex"),
        ({"register_node": [httpx.ConnectError(UNTRUSTED)]}, ConfigError, "--root-certificates"),
        ({"register_node": [(503, b"")]}, LinkLost, "not ready"),
        (
            {"register_node": [error(403, ApiErrorCode.FLEET_SUPERNODE_REGISTRATION_DISABLED)]},
            ConfigError, "--auth-supernode-private-key",
        ),
        (
            {"activate_node": [error(412, ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED)]},
            Refused, "flwr supernode register",
        ),
        ({"activate_node": [error(401, text="Invalid authentication")]}, Refused, "401.*Invalid"),
        ({"activate_node": [(500, b"<html>")]}, Refused, "500"),
        ({"activate_node": [(200, b"\xff\xff")]}, LinkLost, "Invalid protobuf"),
    ],
)  # fmt: skip
def test_what_connecting_can_meet(
    answers: dict[str, list[Answer | Exception]], kind: type[Exception], text: str
) -> None:
    server = Server(**answers)
    with pytest.raises(kind, match=text) as caught:
        link_to(server)
    assert isinstance(caught.value, Refused) == (kind is Refused)
    assert len(server.asked) == len(set(server.asked)), "who connects is not patient here"


def test_a_moment_of_silence_is_waited_out() -> None:
    away: list[Answer | Exception] = [httpx.ReadTimeout("slow"), (502, b""), (200, b"")]
    server = Server(pull_messages=away)
    link = link_to(server, patience_s=5)
    assert link.receive() is None
    assert server.asked.count("pull-messages") == 3
    link.close(leave=False)


def test_a_longer_silence_is_a_lost_link() -> None:
    link = link_to(Server(pull_messages=[httpx.ReadTimeout("")]))
    with pytest.raises(LinkLost, match=r"no SuperLink at link\.example:8000: ReadTimeout"):
        link.receive()
    link.close(leave=False)


def test_a_run_that_ended() -> None:
    over = error(403, ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED, "it has ended")
    link = link_to(Server(get_run=[over]))
    with pytest.raises(RunOver, match="it has ended"):
        link.run_facts(1)
    link.close(leave=False)


def test_a_heartbeat_that_is_not_known_ends_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_internals, "HEARTBEAT_S", 0.02)
    unknown = heartbeat_pb2.SendNodeHeartbeatResponse(success=False).SerializeToString()
    server = Server(send_node_heartbeat=[httpx.ReadTimeout("later"), (200, unknown)])
    link = link_to(server)
    assert link._gone.wait(10)
    with pytest.raises(Refused, match="any more"):
        link.receive()
    link.close(leave=False)


def test_settings_are_those_of_the_bundle_with_what_the_user_changed() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as bundle:
        bundle.write(ROOT / "pyproject.toml", "pyproject.toml")
    run = Run.create_empty(5)
    run.series_id, run.fab_hash, run.override_config = 9, "abc", {"tree.edges": 4}
    fab = fab_to_proto(Fab("abc", packed.getvalue(), {}))
    link = link_to(
        Server(
            get_run=[(200, GetRunResponse(run=run_to_proto(run)).SerializeToString())],
            get_fab=[(200, GetFabResponse(fab=fab).SerializeToString())],
        )
    )
    assert link.run_facts(5) == RunFacts({**RunConfig().to_flwr(), "tree.edges": 4}, 9)
    link.close(leave=False)


def test_a_port_where_nobody_listens() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    address = f"127.0.0.1:{free_port()}"
    for insecure in (True, False):
        with pytest.raises(LinkLost, match=f"no SuperLink at {address}"):
            SuperLink(address, key, insecure=insecure).connect()


def test_a_message_comes_whole_and_a_reply_goes_whole() -> None:
    server = Loop()
    server.available = False  # at the first look
    link = link_to(server)
    message = link.receive()
    assert message is not None
    assert message.metadata.message_id == server.message.object_id
    assert message.content == server.message.content
    reply = Message(message.content, reply_to=message)
    for _ in range(2):
        server.taken.clear()
        link.send(reply, 0.1)
        assert reply.object_id in server.taken
        assert server.taken.keys() == get_all_nested_objects(reply).keys()
    server.stored = False
    with pytest.raises(LinkLost, match="did not store"):
        link.send(reply, 0.1)
    link.close(leave=False)


def test_a_message_of_which_a_part_is_gone_is_left(caplog: pytest.LogCaptureFixture) -> None:
    server = Loop()
    server.objects.popitem()
    link = link_to(server)
    assert link.receive() is None
    assert "incomplete and left" in caplog.text
    link.close(leave=False)
