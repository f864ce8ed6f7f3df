"""A SuperLink's Fleet API that answers as a test says."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, message_pb2
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supernode.fleet_http_client import FleetHttpClient
from google.protobuf.message import Message as Protobuf

from clients.flower_internals import FleetLink, SuperLink
from tests.support.nodes import question

Answer = tuple[int, bytes]


class Server:
    """Answers by path; what it was asked is noted."""

    def __init__(self, **answers: list[Answer | Exception]) -> None:
        self.answers = {name.replace("_", "-"): list(items) for name, items in answers.items()}
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.rpartition("/")[2]
        self.asked.append(name)
        told = self.answers.get(name)
        if not told:
            default = {"activate-node": fleet_pb2.ActivateNodeResponse(node_id=7)}
            content = default[name].SerializeToString() if name in default else b""
            return httpx.Response(200, content=content, request=request)
        item = told.pop(0) if len(told) > 1 else told[0]
        if isinstance(item, Exception):
            raise item
        return httpx.Response(item[0], content=item[1], request=request)


def error(status: int, code: ApiErrorCode | None = None, text: str = "no") -> Answer:
    return status, json.dumps({"code": code, "detail": text} if code else {"detail": text}).encode()


def link_to(
    server: Server | Loop, *, registered: bool = False, patience_s: float = 0.3
) -> FleetLink:
    where = SuperLink(
        "link.example:8000", ec.generate_private_key(ec.SECP384R1()), registered=registered,
        insecure=True, patience_s=patience_s,
    )  # fmt: skip
    client = FleetHttpClient.from_server_address(where.address, True, None, interceptors=[])
    client.close()
    client._client = httpx.Client(transport=httpx.MockTransport(server))
    return FleetLink(client, where)


class Loop:
    """A SuperLink with one message; it hands out its objects and takes the reply's."""

    def __init__(self) -> None:
        message = question()
        message.metadata.__dict__["_message_id"] = message.object_id
        self.objects = {k: v.deflate() for k, v in get_all_nested_objects(message).items()}
        tree = get_object_tree(message)
        bare = message_to_proto(remove_content_from_message(message))
        self.pull = fleet_pb2.PullMessagesResponse(
            messages_list=[bare], message_object_trees=[tree]
        )
        self.message = message
        self.taken: dict[str, bytes] = {}
        self.available, self.stored = True, True

    def __call__(self, request: httpx.Request) -> httpx.Response:
        name, body = request.url.path.rpartition("/")[2], request.read()
        handlers: dict[str, Callable[[bytes], Protobuf]] = {
            "activate-node": lambda body: fleet_pb2.ActivateNodeResponse(node_id=7),
            "pull-messages": lambda body: self.pull,
            "pull-object": self.pull_object,
            "push-messages": self.push_messages,
            "push-object": self.push_object,
        }
        answer = handlers[name](body) if name in handlers else None
        content = answer.SerializeToString() if answer is not None else b""
        return httpx.Response(200, content=content, request=request)

    def pull_object(self, body: bytes) -> message_pb2.PullObjectResponse:
        wanted = message_pb2.PullObjectRequest.FromString(body).object_id
        content = self.objects.get(wanted)
        self.available, available = True, self.available
        return message_pb2.PullObjectResponse(
            object_found=content is not None, object_available=available,
            object_content=content or b"",
        )  # fmt: skip

    def push_messages(self, body: bytes) -> fleet_pb2.PushMessagesResponse:
        (tree,) = fleet_pb2.PushMessagesRequest.FromString(body).message_object_trees
        parts = [p.object_id for p in iterate_object_tree(tree)]
        return fleet_pb2.PushMessagesResponse(objects_to_push=parts, session_id="s")

    def push_object(self, body: bytes) -> message_pb2.PushObjectResponse:
        part = message_pb2.PushObjectRequest.FromString(body)
        self.taken[part.object_id] = part.object_content
        return message_pb2.PushObjectResponse(stored=self.stored)
