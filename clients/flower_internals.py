"""Every import that the node runner takes from Flower's inside, and the link made of them.

Flower has no public API for a node that lives in a process of ours. What is used here is
the client of its Fleet API (protobuf over HTTP), the signatures of SuperNode keys, and the
packing of messages into objects. Written for Flower 1.41; with another version run
``tests/unit/clients/test_flower_internals.py`` first.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.config import get_fused_config_from_fab
from flwr.common.serde import fab_from_proto, message_from_proto, message_to_proto, run_from_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from clients.link import LinkLost, Refused, RunFacts, RunOver
from hffm_flower.errors import ConfigError

log = logging.getLogger(__name__)

Response = TypeVar("Response")

HEARTBEAT_S = 15.0
"""Interval that is promised to the SuperLink; one is sent twice as often [s]."""
UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")
"""Marks of TLS errors that no waiting will mend."""
AWAY = (502, 503, 504)
"""What a proxy says while the SuperLink behind it is away."""


@dataclass(frozen=True, slots=True)
class SuperLink:
    """Where a SuperLink is, and how it and the node know each other.

    Attributes:
        address: ``HOST:PORT``.
        key: The node's key: registered with the SuperLink, or new for this process.
        registered: Whether the key is registered there; else the node registers itself.
        insecure: Plain HTTP.
        root_certificates: PEM of the authorities to trust; None: the usual ones.
        patience_s: How long a call is tried again before the link counts as lost [s];
            connecting is tried once.
    """

    address: str
    key: ec.EllipticCurvePrivateKey
    registered: bool = False
    insecure: bool = False
    root_certificates: bytes | None = None
    patience_s: float = 15.0

    def connect(self) -> FleetLink:
        """Activate the node.

        Raises:
            LinkLost: The SuperLink cannot be reached, or does not know the key (yet).
            ConfigError: Waiting will not help: its certificate is not trusted, or it admits
                registered keys only and this one is not meant to be.
        """
        client = FleetHttpClient.from_server_address(
            self.address,
            self.insecure,
            self.root_certificates,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(self.key, self.key.public_key()),
            ],
        )
        try:
            return FleetLink(client, self)
        except BaseException:
            client.close()
            raise


class FleetLink:
    """A link over Flower's Fleet API; heartbeats come from a thread of its own.

    Args:
        client: Signs and sends requests; closed with the link.
        where: The SuperLink behind it.
    """

    def __init__(self, client: FleetHttpClient, where: SuperLink) -> None:
        self._client, self._where = client, where
        self._gone, self._closing = threading.Event(), threading.Event()
        self._patience_s = 0.0  # who connects has a patience of his own
        public_key = public_key_to_bytes(where.key.public_key())
        if not where.registered:
            new = RegisterNodeFleetRequest(public_key=public_key)
            with contextlib.suppress(_AlreadyRegistered):  # after a lost link it may still be
                self._call(client.RegisterNode, new)
        request = ActivateNodeRequest(public_key=public_key, heartbeat_interval=HEARTBEAT_S)
        self._node = Node(node_id=self._call(client.ActivateNode, request).node_id)
        self._patience_s = where.patience_s
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._heart.start()

    @property
    def node_id(self) -> int:
        """Flower's id of this node."""
        return self._node.node_id

    def receive(self) -> Message | None:
        """The next message with all its content, or None if there is none now."""
        if self._gone.is_set():
            raise Refused("the SuperLink does not know this node any more")
        got = self._call(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not got.messages_list:
            return None
        head, tree = message_from_proto(got.messages_list[0]), got.message_object_trees[0]
        run_id = head.metadata.run_id

        def pull(object_id: str) -> bytes:
            request = PullObjectRequest(node=self._node, run_id=run_id, object_id=object_id)
            answer = self._call(self._client.PullObject, request)
            if not answer.object_found:
                raise ObjectPullError(object_id, "it is not there")
            if not answer.object_available:
                raise ObjectUnavailableError(object_id)
            return answer.object_content

        try:
            contents = pull_objects(
                [part.object_id for part in iterate_object_tree(tree)],
                pull,
                initial_backoff=0.02,
                backoff_cap=1.0,
                max_time=max(0.0, head.metadata.created_at + head.metadata.ttl - time.time()),
            )
        except ObjectPullError as error:
            log.warning("a message of run %d is incomplete and left: %s", run_id, error)
            return None
        confirm = ConfirmMessageReceivedRequest(
            node=self._node, run_id=run_id, message_object_id=tree.object_id
        )
        self._call(self._client.ConfirmMessageReceived, confirm)
        message = cast(Message, inflate_object_from_contents(tree.object_id, contents))
        _set_id(message, tree.object_id)
        return message

    def run_facts(self, run_id: int) -> RunFacts:
        """Settings of a run: those in its app bundle, with what its user changed."""
        known = GetRunRequest(node=self._node, run_id=run_id)
        run = run_from_proto(self._call(self._client.GetRun, known).run)
        wanted = GetFabRequest(node=self._node, hash_str=run.fab_hash, run_id=run_id)
        fab = fab_from_proto(self._call(self._client.GetFab, wanted).fab)
        return RunFacts(get_fused_config_from_fab(fab.content, run), run.series_id)

    def send(self, reply: Message, app_seconds: float) -> None:
        """Send a reply; sending the same one twice does no harm."""
        _set_id(reply, reply.object_id)
        run_id = reply.metadata.run_id
        with no_object_id_recompute():
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[app_seconds],
            )
            told = self._call(self._client.PushMessages, request)

            def push(object_id: str, content: bytes) -> None:
                part = PushObjectRequest(
                    node=self._node, run_id=run_id, session_id=told.session_id,
                    object_id=object_id, object_content=content,
                )  # fmt: skip
                if not self._call(self._client.PushObject, part).stored:
                    raise LinkLost("the SuperLink did not store a part of a reply")

            push_objects(
                get_all_nested_objects(reply), push, object_ids_to_push=set(told.objects_to_push)
            )

    def close(self, *, leave: bool) -> None:
        """End heartbeats and connection; ``leave`` tells the SuperLink that the node goes."""
        self._closing.set()
        self._heart.join(timeout=1.0)
        if leave:
            with contextlib.suppress(httpx.HTTPError, ValueError):
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node_id))
                if not self._where.registered:
                    self._client.UnregisterNode(UnregisterNodeFleetRequest(node_id=self.node_id))
        self._client.close()

    def _beat(self) -> None:
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
        apart = random.Random(self.node_id)  # nodes that start together beat apart
        while not self._closing.wait(HEARTBEAT_S / 2 * apart.uniform(0.8, 1.0)):
            try:
                if not self._client.SendNodeHeartbeat(request).success:
                    self._gone.set()
            except (httpx.HTTPError, ValueError) as error:  # the loop will see for itself
                log.debug("heartbeat failed: %s", error)

    def _call(self, method: Callable[[Any], Response], request: object) -> Response:
        """One request, tried again while the network or the SuperLink is away for a moment."""
        until, wait = time.monotonic() + self._patience_s, 0.1
        while True:
            try:
                return method(request)
            except (httpx.RequestError, httpx.HTTPStatusError, ValueError) as error:
                problem = _read(error, self._where.address)
                if not isinstance(problem, _Away) or time.monotonic() + wait > until:
                    raise problem from error
            time.sleep(wait)
            wait = min(2 * wait, 2.0)


class _Away(LinkLost):
    """The SuperLink is not there, perhaps for a moment."""


class _AlreadyRegistered(Refused):
    """The key is known already."""


def _read(error: Exception, address: str) -> Exception:
    """What an error of a call means for this node."""
    if isinstance(error, httpx.HTTPStatusError):
        return _read_answer(error.response, address)
    if any(mark in str(error) for mark in UNTRUSTED):
        return ConfigError(
            f"--superlink {address} is not trusted: {error}; is it the right address, and "
            "--root-certificates the authority that signed its certificate?"
        )
    return _Away(f"no SuperLink at {address}: {str(error) or type(error).__name__}")


def _read_answer(response: httpx.Response, address: str) -> Exception:
    status, told = response.status_code, FlowerError.from_json(response.text)
    if status in AWAY:
        return _Away(f"the SuperLink at {address} is not ready ({status})")
    code, text = (told.code, told.message) if told else (None, response.text[:200])
    problem: Exception = Refused(f"the SuperLink at {address} refuses this node ({status}): {text}")
    if code == ApiErrorCode.FLEET_SUPERNODE_REGISTRATION_DISABLED:
        problem = ConfigError(
            f"the SuperLink at {address} admits registered keys only; "
            "start the node with --auth-supernode-private-key"
        )
    elif code == ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
        problem = _AlreadyRegistered(text)
    elif code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
        problem = RunOver(text)
    elif code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        problem = Refused(
            f"the SuperLink at {address} does not know this node's key, or holds its predecessor "
            "for alive, up to 30 s; register it with 'flwr supernode register', or wait"
        )
    return problem


def _set_id(message: Message, object_id: str) -> None:
    """A message does not carry its own id; Flower's own runner sets it the same way."""
    message.metadata.__dict__["_message_id"] = object_id
