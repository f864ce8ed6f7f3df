"""The process in which runs work: ``python -m hffm_flower.session.child SCRATCH``.

The first line of standard input is a JSON list of configs. Events go to the file descriptor in
``HFFM_EVENTS`` as JSON lines. The parent holds standard input open: when it closes, for
whatever reason, the run is asked to stop.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path

from hffm_flower.config import RunConfig
from hffm_flower.errors import HffmError, Interrupted
from hffm_flower.runfiles import RunFiles
from hffm_flower.schedule import METHODS

STOPPED = 3
FAILED = 1


def main(scratch: str) -> int:
    """Run and return the exit code."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    events = os.fdopen(int(os.environ["HFFM_EVENTS"]), "w", buffering=1)
    lock = threading.Lock()

    def event(record: Mapping[str, object]) -> None:
        with lock:
            try:
                events.write(json.dumps(record) + "\n")
            except (BrokenPipeError, ValueError):
                stop.set()

    stop = threading.Event()
    configs = [RunConfig.from_flwr(c) for c in json.loads(sys.stdin.buffer.readline())]
    threading.Thread(target=_watch_parent, args=(stop,), daemon=True).start()
    try:
        failed = []
        if federated := [c for c in configs if not METHODS[c.method].pooled]:
            from hffm_flower.session.flower_simulation import simulate

            failed = simulate(federated, event=event, stop=stop, scratch=Path(scratch))
        for config in configs:
            if METHODS[config.method].pooled:
                from hffm_flower.session.central import train_pooled

                event({"event": "run", "out": config.paths.out})
                try:
                    train_pooled(config, RunFiles(Path(config.paths.out)), event=event, stop=stop)
                except Interrupted:
                    raise
                except HffmError as error:
                    name = Path(config.paths.out).parent.name
                    named = f"{name}, seed {config.seed}: " if len(configs) > 1 else ""
                    failed.append(f"{named}{error}")
        if failed:
            raise HffmError("; ".join(failed))
    except Interrupted as error:
        event({"event": "stopped", "reason": str(error)})
        return STOPPED
    except HffmError as error:
        event({"event": "error", "kind": type(error).__name__, "reason": str(error)})
        logging.getLogger(__name__).error("%s", error)
        return FAILED
    except Exception as error:
        cause = error.__cause__ or error  # Flower wraps what went wrong
        event({"event": "error", "kind": type(cause).__name__, "reason": f"{error} {cause!r}"})
        logging.getLogger(__name__).exception("the run ended with an error")
        return FAILED
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # the parent may be gone by now
    return 0


def _watch_parent(stop: threading.Event) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    stop.set()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"ray\..*")
    code = main(*sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Ray's threads must not hold up an ended run
