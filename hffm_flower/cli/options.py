"""Command-line options that several commands share, and how they become a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError, one_of

PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "default": {},
    "small": {"model.backbone": "small"},
    "smoke": {
        "rounds": 4,
        "tree.devices": 8,
        "tree.edges": 2,
        "data.train-per-answer": 30,
        "data.test-per-answer": 15,
        "model.backbone": "small",
        "train.local-epochs": 2,
    },
    "everything": {
        "data.tasks": (
            "easyvqa10 emojivqa10 watch7 digits10 easyvqa-box "
            "emoji-retrieval emoji-caption watch-rate watch-forecast"
        ),
        "data.min-tasks": 1,
        "data.max-tasks": 5,
        "model.backbone": "small",
    },
}
"""Federations of the same kind: with the quick backbone, within a minute, with every task."""

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
Preset = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(PRESETS)}: settings to start from; everything needs the extra audio.",
        show_default=False,
    ),
]
Smoke = Annotated[
    bool, typer.Option("--smoke", help="--preset smoke: a run of it takes less than a minute.")
]
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
    preset: str | None = None,
    smoke: bool = False,
    base: Mapping[str, object] | None = None,
    origins: Mapping[str, str] | None = None,
    sets: list[str] | None = None,
    **options: object,
) -> RunConfig:
    """Defaults, then ``base`` or a preset, then the file, then options, then ``--set``.

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
    if smoke and preset not in (None, "smoke"):
        raise ConfigError(f"--smoke and --preset {preset} exclude each other")
    name = "smoke" if smoke else preset
    if name is not None:
        base = PRESETS[one_of("preset", name, PRESETS, key="--preset")]
    return RunConfig.load(path, given, base=base, origins=origins)
