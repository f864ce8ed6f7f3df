"""The ServerApp: Flower's door to a federation."""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from hffm_flower.config import RunConfig
from hffm_flower.runfiles import RunFiles
from strategies.federation import federate

log = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Entry point of a Flower run."""
    config = RunConfig.from_flwr(context.run_config)
    out = Path(config.paths.out) if config.paths.out else Path("runs") / str(context.run_id)
    files = RunFiles.create(out)
    log.info("results go to %s", out.resolve())
    federate(grid, config, files)
