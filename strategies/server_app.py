"""The ServerApp: Flower's door to a federation."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from hffm_flower.config import RunConfig
from hffm_flower.runfiles import RunFiles
from strategies.federate import federate

log = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Entry point of a Flower run."""
    config = RunConfig.from_flwr(context.run_config)
    out = Path(config.paths.out) if config.paths.out else Path("runs") / str(context.run_id)
    stop = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    if config.deploy.tier == "edge":
        from strategies.edge_tier import serve_edge

        serve_edge(grid, config, RunFiles(out), stop=stop)
        return
    files = RunFiles.create(out)
    log.info("results go to %s", out.resolve())
    federate(grid, config, files, stop=stop)
