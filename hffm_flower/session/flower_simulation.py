"""The one door to Flower's Ray-backed simulation."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from hffm_flower.config import Flat, RunConfig
from hffm_flower.runfiles import RunFiles
from strategies.federation import Event, federate

OBJECT_STORE_BYTES = 512 * 2**20


class ConfiguredClientApp(ClientApp):
    """The project's ClientApp with this run's config, which `run_simulation` cannot pass.

    It is imported where it is called, so that only Ray actors load torch.
    """

    def __init__(self, run_config: Flat) -> None:
        super().__init__()
        self._run_config = run_config

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        from clients.client_app import app

        known = Context(
            run_id=context.run_id,
            node_id=context.node_id,
            node_config=context.node_config,
            state=context.state,
            run_config=dict(self._run_config),
        )
        return app(message, known)


def simulate(
    config: RunConfig, files: RunFiles, *, event: Event, stop: threading.Event, scratch: Path
) -> None:
    """Run a federation with every device in a Ray actor; returns when it has ended.

    Args:
        config: The run's settings.
        files: Folder to fill.
        event: Told of progress.
        stop: Set from outside to end the run.
        scratch: Folder for Ray's sockets and logs; a short path.

    Raises:
        HffmError: What ended the run early.
    """
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        federate(grid, config, files, event=event, stop=stop)

    logging.getLogger("flwr").addFilter(_no_deprecation)
    os.environ["OMP_NUM_THREADS"] = "1"
    actors = min(config.simulation.actors or os.cpu_count() or 1, config.tree.devices)
    run_simulation(
        server_app=server,
        client_app=ConfiguredClientApp(config.to_flwr()),
        num_supernodes=config.tree.devices,
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
                "num_gpus": config.simulation.gpus_per_actor,
                "max_restarts": -1,  # a killed actor costs its message, not the run
            },
        },
    )


def _no_deprecation(record: logging.LogRecord) -> bool:
    return "deprecated" not in record.getMessage().lower()
