"""Command-line options that several commands share, and how they become a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from hffm_flower.config import RunConfig

SMOKE: Final[Mapping[str, object]] = {
    "rounds": 4,
    "tree.devices": 8,
    "tree.edges": 2,
    "data.train-per-answer": 30,
    "data.test-per-answer": 15,
    "model.backbone": "small",
    "train.local-epochs": 2,
}
"""A federation of the same kind that is done within a minute."""

ConfigFile = Annotated[
    Path | None,
    typer.Argument(metavar="[CONFIG.toml]", help="Settings; see docs/configuration.md."),
]
Method = Annotated[
    str | None, typer.Option(help="local, star, edge-only, h-fedfm or central.", show_default=False)
]
Rounds = Annotated[int | None, typer.Option(help="Edge rounds T.")]
Devices = Annotated[int | None, typer.Option(help="Devices in total.")]
Edges = Annotated[int | None, typer.Option(help="Edge servers.")]
Period = Annotated[int | None, typer.Option(help="Edge rounds per cloud round, E.")]
Seed = Annotated[int | None, typer.Option(help="Seed of every random draw.")]
D2D = Annotated[
    str | None,
    typer.Option("--d2d", help="none, relay, gossip or cooperative.", show_default=False),
]
Encoders = Annotated[
    str | None, typer.Option(help="Frozen weights: pretrained or random.", show_default=False)
]
Smoke = Annotated[bool, typer.Option("--smoke", help="A small federation, under a minute.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. train.batch-size=8."),
]

KEY_OF: Final[Mapping[str, str]] = {
    "method": "method",
    "rounds": "rounds",
    "devices": "tree.devices",
    "edges": "tree.edges",
    "period": "tree.period",
    "seed": "seed",
    "encoders": "model.weights",
    "d2d": "d2d.plan",
    "actors": "simulation.actors",
    "gpus_per_actor": "simulation.gpus-per-actor",
}


def configure(
    path: Path | None,
    *,
    smoke: bool = False,
    base: Mapping[str, object] | None = None,
    origins: Mapping[str, str] | None = None,
    sets: list[str] | None = None,
    **options: object,
) -> RunConfig:
    """Defaults, then ``base`` or the smoke preset, then the file, then options, then ``--set``.

    Raises:
        ConfigError: A value or a key is not allowed; the message names its origin.
    """
    given: dict[str, tuple[str, object]] = {
        KEY_OF[name]: (f"--{name.replace('_', '-')}", value)
        for name, value in options.items()
        if value is not None
    }
    for item in sets or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise typer.BadParameter(f"{item!r} is not of the form KEY=VALUE", param_hint="--set")
        given[key] = (f"--set {item}", value)
    return RunConfig.load(path, given, base=SMOKE if smoke else base, origins=origins)
