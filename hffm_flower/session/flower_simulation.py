"""The one door to Flower's Ray-backed simulation."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from hffm_flower.config import Flat, RunConfig
from hffm_flower.errors import HffmError, Interrupted
from hffm_flower.records import number
from hffm_flower.runfiles import RunFiles
from hffm_flower.session.shared_grid import SESSION, Answers, SessionGrid, twin_of
from strategies.federate import federate
from strategies.federation import Event

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 512 * 2**20


class ConfiguredClientApp(ClientApp):
    """The project's ClientApp with its runs' configs, which `run_simulation` cannot pass.

    It is imported where it is called, so that only Ray actors load torch.

    Args:
        run_configs: Of the session's runs; a message says which it belongs to.
    """

    def __init__(self, run_configs: Sequence[Flat]) -> None:
        super().__init__()
        self._run_configs = tuple(run_configs)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        from clients.client_app import app

        run = number(message.content, SESSION, "run")
        known = Context(
            run_id=context.run_id,
            node_id=context.node_id,
            node_config=context.node_config,
            state=context.state,
            run_config=dict(self._run_configs[run]),
        )
        return app(message, known)


def simulate(
    runs: Sequence[RunConfig], *, event: Event, stop: threading.Event, scratch: Path
) -> list[str]:
    """Run federations one after the other, with every device in a Ray actor.

    Args:
        runs: Settings of each; all have as many devices. Each fills its ``paths.out``.
        event: Told of progress.
        stop: Set from outside to end the run.
        scratch: Folder for Ray's sockets and logs; a short path.

    Returns:
        Why runs ended early, those that did.

    Raises:
        Interrupted: ``stop`` was set.
    """
    server, answers = ServerApp(), Answers()
    failed: list[str] = []
    first = runs[0]
    alike = max(config.tree.period for config in runs)  # then the cloud makes a difference

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        for place, config in enumerate(runs):
            event({"event": "run", "out": config.paths.out})
            view = SessionGrid(
                grid, place, answers=answers,
                twin=twin_of(config),
                until=alike if len(runs) > 1 else 0,
            )  # fmt: skip
            try:
                federate(view, config, RunFiles(Path(config.paths.out)), event=event, stop=stop)
            except Interrupted:
                raise
            except HffmError as error:
                log.exception("%s ended early", config.paths.out)
                named = f"{Path(config.paths.out).parent.name}, seed {config.seed}: "
                failed.append(f"{named if len(runs) > 1 else ''}{error}")

    logging.getLogger("flwr").addFilter(_no_deprecation)
    os.environ["OMP_NUM_THREADS"] = "1"
    actors = min(first.simulation.actors or os.cpu_count() or 1, first.tree.devices)
    run_simulation(
        server_app=server,
        client_app=ConfiguredClientApp([c.to_flwr() for c in runs]),
        num_supernodes=first.tree.devices,
        backend_config={
            "init_args": {
                "address": "local",
                "_temp_dir": str(scratch),
                "num_cpus": actors,
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "log_to_driver": False,
                "logging_level": "warning",
            },
            "client_resources": {
                "num_cpus": 1,
                "num_gpus": first.simulation.gpus_per_actor,
                "max_restarts": -1,  # a killed actor costs its message, not the run
            },
        },
    )

    return failed


def _no_deprecation(record: logging.LogRecord) -> bool:
    return "deprecated" not in record.getMessage().lower()
