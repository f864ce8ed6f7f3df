"""hffm_flower: hierarchical federated foundation models on Flower.

``run(config)`` trains a federation on this machine; ``compare(config, ...)`` trains several
methods and compares them; ``load(folder)`` returns a model of a finished run, ready to
predict. See ``docs/architecture.md`` for the names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hffm_flower.version import __version__ as __version__

if TYPE_CHECKING:
    from hffm_flower.config import RunConfig as RunConfig
    from hffm_flower.session.comparison import Comparison as Comparison
    from hffm_flower.session.comparison import compare as compare
    from hffm_flower.session.run import RunResult as RunResult
    from hffm_flower.session.run import run as run
    from hffm_flower.session.saved import load as load

_WHERE = {
    "RunConfig": "hffm_flower.config",
    "Comparison": "hffm_flower.session.comparison",
    "compare": "hffm_flower.session.comparison",
    "RunResult": "hffm_flower.session.run",
    "run": "hffm_flower.session.run",
    "load": "hffm_flower.session.saved",
}


def __getattr__(name: str) -> object:
    """Import the public names when they are first used: servers need no torch."""
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'hffm_flower' has no attribute {name!r}")
