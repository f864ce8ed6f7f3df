"""The ClientApp of an edge's upstream node: hands the cloud's messages to the edge's gateway."""

from __future__ import annotations

import time
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from hffm_flower.errors import ProtocolError
from hffm_flower.rpc.channel import Credentials
from hffm_flower.rpc.gateway import Question, ask

app = ClientApp()


def _forward(message: Message, context: Context) -> Message:
    """The edge's answer, within what is left of the message's time to live."""
    config = context.node_config
    address = config.get("gateway")
    if not isinstance(address, str):
        raise ProtocolError(
            "this node does not say where its edge's gateway is; start it with --node-config "
            "'gateway=\"127.0.0.1:PORT\"'"
        )
    data = message.metadata
    question = Question(context.run_id, data.message_type, int(data.group_id), message.content)
    left_s = data.created_at + data.ttl - time.time()
    content = ask(
        address, question, credentials=credentials_of(context), deadline_s=max(1.0, left_s)
    )
    return Message(content, reply_to=message)


def credentials_of(context: Context) -> Credentials | None:
    """Certificates of this machine, named in the node's settings.

    Raises:
        ProtocolError: There are none, and the node was not told to go without.
    """
    config = context.node_config
    folder = config.get("certificates")
    if isinstance(folder, str) and folder:
        own = Path(folder)
        return Credentials.read(own / "ca.pem", own / "cert.pem", own / "key.pem")
    if config.get("insecure") is True:
        return None
    raise ProtocolError(
        "this node has no certificates; start it with --node-config 'certificates=\"DIR\"' (see "
        "hffm certs), or 'insecure=true'"
    )


for _answers in (
    app.query("profile"), app.query("init"), app.query("begin"), app.query("end"),
    app.train("cluster"), app.evaluate("cluster"),
):  # fmt: skip
    _answers(_forward)
