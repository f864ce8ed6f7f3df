"""One run's settings: from TOML, from the command line, from Flower's run config.

Keys are written with dashes (``train.local-epochs``), lists as one string of words, so
that the same names and values stand in a TOML file, in ``pyproject.toml`` and behind
``flwr run --run-config``. Only entry points see a `RunConfig`; every other class takes
the few values that it needs.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Self

from pydantic import Field, PrivateAttr, ValidationError
from pydantic.alias_generators import to_snake

from hffm_flower.errors import ConfigError, one_of
from hffm_flower.schedule import METHODS
from hffm_flower.sections import (
    D2DConfig,
    DataConfig,
    DeployConfig,
    ModelConfig,
    PathsConfig,
    RadioConfig,
    Section,
    ServerConfig,
    SimulationConfig,
    TrainConfig,
    TreeConfig,
)

FORMS: Final[Mapping[str, str]] = {
    "model.encoders": "modality=encoder",
    "model.tune": "modality=last:N or modality=lora:R[:N]",
    "model.prompts": "task=N, modality=N or missing=N",
}
"""Settings whose words are pairs -> their form."""

Flat = dict[str, str | int | float | bool]


class RunConfig(Section):
    """All settings of a run. Immutable; unknown keys are refused.

    Raises:
        ConfigError: (from the constructors below) a value or a key is not allowed; the
            message names the value, what is allowed, and where it came from.
    """

    method: str = "h-fedfm"
    rounds: int = Field(12, ge=1, le=100_000, description="edge rounds T, for every method")
    seed: int = Field(1, ge=0)
    tree: TreeConfig = TreeConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    server: ServerConfig = ServerConfig()
    d2d: D2DConfig = D2DConfig()
    radio: RadioConfig = RadioConfig()
    deploy: DeployConfig = DeployConfig()
    simulation: SimulationConfig = SimulationConfig()
    paths: PathsConfig = PathsConfig()
    _origin: dict[str, str] = PrivateAttr(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Whether all settings are equal, wherever they came from."""
        return isinstance(other, RunConfig) and self.to_flwr() == other.to_flwr()

    def __hash__(self) -> int:
        """Hash of the settings."""
        return hash(tuple(self.to_flwr().items()))

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        options: Mapping[str, tuple[str, object]] | None = None,
        *,
        base: Mapping[str, object] | None = None,
        origins: Mapping[str, str] | None = None,
    ) -> Self:
        """Defaults, then ``base``, then the file, then ``options``.

        Args:
            path: TOML file with the tables of this class.
            options: Dotted key -> (name of the command-line option, value).
            base: Dotted key -> value, e.g. of a preset.
            origins: Dotted key of ``base`` -> where its value came from.
        """
        flat: dict[str, object] = dict(base or {})
        origin: dict[str, str] = dict(origins or {})
        if path is not None:
            for key, value in flatten(read_toml(path)).items():
                flat[key], origin[key] = value, str(path)
        for key, (option, value) in (options or {}).items():
            flat[key], origin[key] = value, option
        return cls._build(flat, origin)

    @classmethod
    def from_flwr(cls, run_config: Mapping[str, object]) -> Self:
        """Read Flower's flat run config (``context.run_config``)."""
        return cls._build(run_config, dict.fromkeys(run_config, "Flower's run config"))

    def to_flwr(self) -> Flat:
        """Flat form with dotted keys and scalar values only; inverse of `from_flwr`."""
        flat: Flat = {}
        for key, value in flatten(self.model_dump(by_alias=True)).items():
            scalar = " ".join(map(str, value)) if isinstance(value, tuple) else value
            assert isinstance(scalar, str | int | float | bool)
            flat[key] = scalar
        return flat

    def cache_dir(self) -> Path:
        """Folder of caches: ``paths.cache``, else ``$HFFM_CACHE``, else the user's own."""
        named = self.paths.cache or os.environ.get("HFFM_CACHE", "")
        return Path(named).expanduser() if named else Path.home() / ".cache" / "hffm-flower"

    def shared(self) -> dict[str, object]:
        """What all nodes must agree on; paths, radio, roles and hardware are their own."""
        own = ("paths.", "simulation.", "radio.", "deploy.", "train.device", "train.checkpointing")
        return {k: v for k, v in self.to_flwr().items() if not k.startswith(own)}

    def with_values(self, **changes: object) -> Self:
        """Copy with dotted keys changed; ``__`` for the dot, ``_`` for the dash."""
        flat: dict[str, object] = dict(self.to_flwr())
        flat |= {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
        return self._build(flat, {})

    @classmethod
    def _build(cls, flat: Mapping[str, object], origin: Mapping[str, str]) -> Self:
        nested: dict[str, Any] = {}
        for key, value in flat.items():
            _refuse_unknown(key, origin.get(key, ""))
            *tables, name = key.split(".")
            at = nested
            for table in tables:
                at = at.setdefault(table, {})
            at[name] = value
        try:
            config = cls.model_validate(nested)
            config._check()
        except ValidationError as error:
            raise _explain(error, origin) from error
        except ConfigError as error:
            raise located(error, origin) from error
        config._origin.update(origin)
        return config

    def locate(self, error: ConfigError) -> ConfigError:
        """The same error with key, and file or option, in front."""
        return located(error, self._origin)

    def _check(self) -> None:
        one_of("method", self.method, METHODS, key="method")
        if not METHODS[self.method].flat and self.tree.edges > self.tree.devices:
            raise ConfigError(
                f"{self.tree.edges} edges are more than the {self.tree.devices} devices; "
                "every edge needs at least one device",
                key="tree.edges",
            )
        if not self.data.tasks:
            raise ConfigError("no task is named", key="data.tasks")
        if len(set(self.data.tasks)) < len(self.data.tasks):
            raise ConfigError(f"{' '.join(self.data.tasks)!r} repeats a task", key="data.tasks")
        if self.d2d.plan != "none" and METHODS[self.method].clusterless:
            able = ", ".join(name for name, m in METHODS.items() if not m.clusterless)
            raise ConfigError(
                f"plan {self.d2d.plan!r} needs clusters that average; method {self.method!r} has "
                f"none; methods that have: {able}",
                key="d2d.plan",
            )
        if self.data.min_tasks > self.data.max_tasks:
            raise ConfigError(
                f"{self.data.min_tasks} is above data.max-tasks = {self.data.max_tasks}",
                key="data.min-tasks",
            )
        self.encoder_names()

    @property
    def flat(self) -> bool:
        """Whether devices hang on the cloud directly."""
        return METHODS[self.method].flat

    @property
    def has_lora(self) -> bool:
        """Whether any module consists of LoRA factors."""
        return self.model.adapter == "lora" or any("=lora:" in t for t in self.model.tune)

    def encoder_names(self) -> dict[str, str]:
        """Modality -> name of its encoder."""
        return self.pairs("model.encoders", self.model.encoders)

    @staticmethod
    def pairs(key: str, items: Iterable[str]) -> dict[str, str]:
        """Setting ``key``, whose words are ``name=value``, as a dict.

        Raises:
            ConfigError: A word is not of that form, or a name comes twice.
        """
        pairs: dict[str, str] = {}
        for item in items:
            name, equals, value = item.partition("=")
            if not equals or not name or not value or name in pairs:
                raise ConfigError(
                    f"{item!r} is not of the form {FORMS[key]}, one for each", key=key
                )
            pairs[name] = value
        return pairs


def located(error: ConfigError, origin: Mapping[str, str]) -> ConfigError:
    """Put key and origin in front of an error that names a key, once."""
    if not error.key or str(error).startswith(f"{error.key}"):
        return error
    where = f" (from {origin[error.key]})" if error.key in origin else ""
    return type(error)(f"{error.key}{where}: {error}", key=error.key)


def read_toml(path: str | Path, what: str = "the config") -> dict[str, Any]:
    """Read a TOML file; ``what`` it is, for messages.

    Raises:
        ConfigError: It cannot be read, or is not valid.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {what} {str(path)!r}: {error}") from error
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also: a number of 5000 digits
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def flatten(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Dotted key -> value of nested tables."""
    flat: dict[str, object] = {}
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and (value or key in TABLES):
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = value
    return flat


TABLES: Final = frozenset(
    name for name, field in RunConfig.model_fields.items() if isinstance(field.default, Section)
)


def keys() -> tuple[str, ...]:
    """All dotted keys of a config, in order."""
    return _KEYS


_KEYS: Final = tuple(flatten(RunConfig().model_dump(by_alias=True)))


def _refuse_unknown(key: str, origin: str) -> None:
    if key in _KEYS:
        return
    where = f" (from {origin})" if origin else ""
    near = difflib.get_close_matches(key, _KEYS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    table = key.rpartition(".")[0]
    peers = [k for k in _KEYS if k.rpartition(".")[0] == table] or list(_KEYS)
    if not table:
        peers += [f"[{name}]" for name in sorted(TABLES)]
    raise ConfigError(
        f"{key}{where}: unknown setting{hint}; allowed here: {', '.join(peers)}", key=key
    )


def _explain(error: ValidationError, origin: Mapping[str, str]) -> ConfigError:
    first = error.errors()[0]
    key = ".".join(str(p) for p in first["loc"] if isinstance(p, str))
    key = key.replace("_", "-") if to_snake(key) else key
    return located(
        ConfigError(f"{first['input']!r} is not allowed: {first['msg']}", key=key), origin
    )
