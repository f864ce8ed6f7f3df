"""The variants of a comparison: settings under a name, beside settings in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hffm_flower.config import RunConfig, flatten, read_toml
from hffm_flower.errors import ConfigError
from hffm_flower.session.entries import Entry, check_rounds, in_variant, refuse_twins

TABLE: Final = "variants"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9+-]{0,63}")
ONE_FOR_ALL: Final = ("rounds", "seed", "tree.devices", "simulation.", "deploy.", "paths.")
"""Settings, and tables of them, that all runs of a comparison have in common."""

Variants = Mapping[str, Mapping[str, object]]
"""Name -> dotted setting -> value."""


@dataclass(frozen=True, slots=True)
class VariantsFile:
    """A file of variants.

    Attributes:
        common: Dotted setting -> value, outside the variants.
        variants: Those of each variant.
    """

    common: Mapping[str, object]
    variants: Variants


def read_variants(path: Path) -> VariantsFile:
    """Read a run file with tables ``[variants.<name>]``.

    Raises:
        ConfigError: It cannot be read, or has no such tables.
    """
    table = read_toml(path)
    found = table.pop(TABLE, None)
    if not isinstance(found, Mapping) or not found:
        raise ConfigError(f"{path} has no tables [{TABLE}.<name>] to compare")
    for name, settings in found.items():
        if not isinstance(settings, Mapping):
            raise in_variant(name, ConfigError(f"{settings!r} is no table of settings"))
    return VariantsFile(flatten(table), {name: flatten(own) for name, own in found.items()})


def variant_entries(base: RunConfig, variants: Variants, seeds: Iterable[int]) -> list[Entry]:
    """Runs of ``variants``, in their order, for each of ``seeds``.

    Raises:
        ConfigError: A name or a setting is not allowed, two variants are the same, or T is no
            multiple of a variant's period.
    """
    if not variants:
        raise ConfigError("no variant to compare")
    wanted = [
        _entry(base.with_values(seed=seed), name, settings)
        for seed in seeds
        for name, settings in variants.items()
    ]
    refuse_twins(wanted, "variant")
    return wanted


def _entry(base: RunConfig, name: str, settings: Mapping[str, object]) -> Entry:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"variant {name!r}: a name is of letters, digits, - and +, begins with a letter or "
            "digit, and has 64 characters at most"
        )
    try:
        for key in settings:
            if any(key == one or (one[-1] == "." and key.startswith(one)) for one in ONE_FOR_ALL):
                raise ConfigError(
                    f"{key} is in common to all variants: {', '.join(ONE_FOR_ALL[:3])}, and the "
                    "tables simulation, deploy, paths",
                    key=key,
                )
        config = RunConfig.load(base={**base.to_flwr(), **settings})
        if config.method == "h-fedfm":
            check_rounds(config.rounds, config.tree.period, name)
    except ConfigError as error:
        raise in_variant(name, error) from error
    flat = config.to_flwr()
    return Entry(name, config, {key: flat[key] for key in settings})
