"""A federation of tiny parts, played on the fake grid and recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients import client_app
from hffm_flower.config import RunConfig
from hffm_flower.report import RoundReport
from hffm_flower.runfiles import RunFiles
from strategies.federate import federate
from strategies.federation import Event
from tests.support.fake_grid import FIRST_NODE, FakeGrid


@dataclass(frozen=True)
class Call:
    """One question to a device, and its answer."""

    index: int
    kind: str
    t: int
    question: Message
    reply: Message


class RecordingApp(ClientApp):
    """The real ClientApp; every call is noted. Subclasses misbehave in `answer`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer and note it."""
        index = context.node_id - FIRST_NODE
        kind = message.metadata.message_type
        t = int(cast(int, (message.content.config_records["config"])["t"]))
        reply = self.answer(message, context, index=index, kind=kind, t=t)
        self.calls.append(Call(index, kind, t, message, reply))
        return reply

    def answer(
        self, message: Message, context: Context, *, index: int, kind: str, t: int
    ) -> Message:
        """The real answer."""
        return client_app.app(message, context)

    def of(self, kind: str) -> list[Call]:
        """Calls of one kind, in order."""
        return [c for c in self.calls if c.kind == kind]


@dataclass
class Played:
    """A run over a fake grid, finished or not."""

    config: RunConfig
    files: RunFiles
    app: RecordingApp
    grid: FakeGrid
    error: BaseException | None = None
    events: list[Mapping[str, object]] = field(default_factory=list)

    @property
    def rounds(self) -> list[RoundReport]:
        """Rounds as saved."""
        return self.files.rounds()

    @property
    def result(self) -> dict[str, Any]:
        """``result.json``."""
        return self.files.result()


def play(
    config: RunConfig,
    out: Path,
    *,
    app: RecordingApp | None = None,
    grid: type[FakeGrid] = FakeGrid,
    event: Event | None = None,
    **federation: Any,
) -> Played:
    """Run `federate` over a fake grid; what it raises is kept in ``error``."""
    app = app or RecordingApp()
    grid_of_devices = grid(app, config.tree.devices, config.to_flwr())
    played = Played(config, RunFiles.create(out), app, grid_of_devices)
    try:
        federate(
            played.grid, config, played.files, event=event or played.events.append, **federation
        )
    except Exception as error:
        played.error = error
    return played
