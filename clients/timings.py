"""When a node's messages went: lines of JSON in the file that ``timings`` of its config names.

Times are those of `time.monotonic`, which all processes of a machine share [s].
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from flwr.app import Message

_log = logging.getLogger(__name__)

TIMINGS: Final = "timings"
"""Key of the node's config."""


def note(node_config: Mapping[str, object], kind: str, **facts: object) -> None:
    """Write one line, where the node is asked to; that it cannot be written is no error."""
    path = str(node_config.get(TIMINGS, ""))
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **facts}) + "\n")
    except OSError as error:
        _log.warning("timings are not written to %s: %s", path, error)


def tensor_bytes(message: Message) -> int:
    """Arrays in a message [byte]; 0 where there is an error instead."""
    if not message.has_content():
        return 0
    records = message.content.array_records.values()
    return sum(len(array.data) for record in records for array in record.values())
