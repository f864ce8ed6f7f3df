"""A federation from its first message to the folder that it leaves, however it ends."""

from __future__ import annotations

import threading

from flwr.serverapp import Grid

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError, HffmError, Interrupted
from hffm_flower.runfiles import RunFiles
from hffm_flower.schedule import METHODS
from strategies.cloud_tier import CloudTier
from strategies.federation import Event, Federation
from strategies.planner import check_exchange


def federate(
    grid: Grid,
    config: RunConfig,
    files: RunFiles,
    *,
    event: Event = lambda event: None,
    stop: threading.Event | None = None,
) -> None:
    """Run a federation over a grid of devices and write its folder.

    Args:
        grid: Flower's grid, or any that behaves like it; its nodes are the devices.
        config: The run's settings.
        files: Folder to fill; it keeps what was finished when the run ends early.
        event: Told of progress.
        stop: Set from outside to end the run.

    Raises:
        HffmError: The run cannot begin, or cannot go on; nothing that was saved is lost.
    """
    if METHODS[config.method].pooled:
        raise ConfigError(
            "method 'central' has no federation; use 'hffm run --method central'", key="method"
        )
    check_exchange(config)
    stop = stop or threading.Event()
    tree = CloudTier if config.deploy.tier == "cloud" else Federation
    federation = tree(config, files, event, stop)
    status, reason = "failed", ""
    try:
        federation.run(grid)
        status = "finished"
    except Interrupted as error:
        status, reason = "interrupted", str(error)
        raise
    except HffmError as error:
        reason = str(error)
        raise
    except Exception as error:  # such as the SuperLink's end, or a stopped run
        reason = f"{type(error).__name__}: {error}"
        raise
    finally:
        federation.save(status, reason)
