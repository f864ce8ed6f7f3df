"""Checkpoints of `transformers`: a folder, or a model of the hub that is in the hub's cache.

What is on the machine is used as it is: the hub is asked only for files that are missing, so
that all processes of a run see the same ones. With ``HF_HUB_OFFLINE`` it is never asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from hffm_flower.errors import ConfigError
from hffm_flower.models.hub import CONFIG, hub_file, hub_folder
from hffm_flower.seeding import stream_seed

WEIGHTS: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where weights are looked for, the first that is there; an index names several files."""
_REFUSALS: Final = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError),
    *(TypeError, ValueError),
    StrictDataclassError,
)
"""What configurations of sizes that cannot be lead to."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint; only its configuration has been read.

    Attributes:
        source: How the user calls it: a folder, ``owner/name`` or ``owner/name@revision``.
        folder: Where its files are.
        config: Its ``PretrainedConfig``.
        model_type: Its architecture, as `transformers` calls it.
        key: The setting that names it.
        repository: Its name in the hub; empty: it is a folder of the user's.
    """

    source: str
    folder: Path
    config: Any = field(compare=False, repr=False)
    model_type: str
    key: str
    repository: str = ""

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the contents of configuration and weights.

        A file is read once by a process, and again when its size or its time has changed. Files
        of the hub's cache are not read: they are named by their hash.

        Raises:
            ConfigError: The weights are missing.
        """
        return self.digest(CONFIG, *(path.name for path in self.weights()))

    def digest(self, *names: str) -> str:
        """Hex SHA-256 of names and contents of files; ConfigError if one is missing."""
        sha = hashlib.sha256()
        for name in names:
            sha.update(f"{name}\0{content_hash(self.file(name))}\n".encode())
        return sha.hexdigest()

    def digest_of(self, groups: Iterable[Sequence[str]], extras: Iterable[str] = ()) -> str:
        """Hex SHA-256 of those files that are there; which of them count, `transformers` decides.

        Args:
            groups: Of each at least one is needed.
            extras: What may be missing.

        Raises:
            ConfigError: Of a group there is none.
        """
        names = [*extras]
        for group in groups:
            self.file(*group)
            names += group
        return self.digest(*(name for name in names if (self.folder / name).is_file()))

    def file(self, *names: str) -> Path:
        """The first of ``names`` that is there, from the hub if it has to be.

        Raises:
            ConfigError: None is; the message says where each was looked for and how to get it.
        """
        for name in names:
            if (self.folder / name).is_file():
                return self.folder / name
        if not self.repository:
            raise ConfigError(
                f"checkpoint {self.source!r} has no {' or '.join(names)}; expected: "
                f"{self.folder / names[0]}; save the model there with save_pretrained, or get "
                f"one from the hub with: hf download OWNER/NAME --local-dir {self.folder}",
                key=self.key,
            )
        return hub_file(self.source, self.repository, self.folder.name, names, key=self.key)

    def config_for(self, kind: str) -> Any:
        """The part of the configuration that a model class of `transformers` is built from."""
        wanted = getattr(importlib.import_module("transformers"), kind).config_class
        parts = (getattr(self.config, name) for name in self.config.sub_configs)
        return next((c for c in (self.config, *parts) if isinstance(c, wanted)), self.config)

    def weights(self) -> tuple[Path, ...]:
        """Files of the weights, the index first if there is one.

        Raises:
            ConfigError: One is missing.
        """
        first = self.file(*WEIGHTS)
        if first.suffix != ".json":
            return (first,)
        try:
            parts = set(json.loads(first.read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{first} is no index of weights: {error}", key=self.key) from error
        return (first, *(self.file(name) for name in sorted(parts)))

    def load(
        self, kind: str, weights: Literal["pretrained", "random"], *, seed: int, **changes: Any
    ) -> nn.Module:
        """The network, frozen, float32, on the host, in evaluation mode.

        Args:
            kind: Name of a model class of `transformers`.
            weights: The checkpoint's, or drawn as `transformers` initialises them.
            seed: Draws the random ones.
            **changes: Of the configuration, and options of the constructor.

        Raises:
            ConfigError: Weights are missing or cannot be read, or others than those of ``kind``.
        """
        network: nn.Module
        family = getattr(importlib.import_module("transformers"), kind)
        if weights == "pretrained":
            network = self._pretrained(family, changes)
        else:
            config = self.config_for(kind)
            settings = changes.keys() & (config.to_dict().keys() | {"attn_implementation"})
            changed = {name: changes.pop(name) for name in settings}
            with quiet(), torch.random.fork_rng(devices=[]), self.usable():
                torch.manual_seed(stream_seed(seed, "checkpoint", kind))
                network = family(_changed(config, changed), **changes)
        return network.requires_grad_(False).eval()

    @contextlib.contextmanager
    def usable(self) -> Iterator[None]:
        """Say that the configuration is at fault for what is raised within.

        Raises:
            ConfigError: Something was, be it by us or by `transformers`.
        """
        try:
            yield
        except ConfigError:
            raise
        except _REFUSALS as error:
            raise ConfigError(
                f"{self.folder / CONFIG} of checkpoint {self.source!r} cannot be used: "
                f"{type(error).__name__}: {error}",
                key=self.key,
            ) from error

    def _pretrained(self, family: Any, changes: dict[str, Any]) -> nn.Module:
        self.weights()
        try:
            with quiet(), torch.random.fork_rng(devices=[]):
                network, told = family.from_pretrained(
                    self.folder, local_files_only=True, dtype=torch.float32,
                    output_loading_info=True, ignore_mismatched_sizes=True, **changes,
                )  # fmt: skip
        except (OSError, SafetensorError, UnpicklingError, *_REFUSALS) as error:
            raise ConfigError(
                f"weights of checkpoint {self.source!r} in {self.folder} cannot be read as "
                f"{family.__name__}: {error}",
                key=self.key,
            ) from error
        if lacking := sorted(told["missing_keys"]):
            raise ConfigError(
                f"weights of checkpoint {self.source!r} in {self.folder} lack {len(lacking)} "
                f"tensors of {family.__name__}, e.g. {lacking[0]}",
                key=self.key,
            )
        if odd := sorted(told["mismatched_keys"]):
            name, found, wanted = odd[0]
            raise ConfigError(
                f"weights of checkpoint {self.source!r} in {self.folder} are not those of its "
                f"{CONFIG}: {len(odd)} tensors have other shapes, e.g. {name} {list(found)}, which "
                f"is to be {list(wanted)}",
                key=self.key,
            )
        made: nn.Module = network
        return made


def _changed(config: Any, changed: Mapping[str, Any]) -> Any:
    """``config`` with other values; what it says of each layer is cut to as many layers."""
    told = config.to_dict() | changed
    if kinds := told.get("layer_types"):
        told["layer_types"] = kinds[: told["num_hidden_layers"]]
    return type(config).from_dict(told)


def find_checkpoint(source: str, *, allowed: Collection[str], key: str) -> Checkpoint:
    """The checkpoint called ``source``; of its files only the configuration is read.

    Args:
        source: A folder, or a model of the hub: ``owner/name``, ``owner/name@revision``.
        allowed: Architectures that fit here.
        key: The setting that names it.

    Raises:
        ConfigError: There is none, or it is of another architecture.
    """
    if not source:
        raise ConfigError(
            "hf: names no checkpoint; allowed: hf:FOLDER, hf:OWNER/NAME, hf:OWNER/NAME@REVISION",
            key=key,
        )
    if any(map(str.isspace, source)):
        raise ConfigError(
            f"{source!r} has spaces, which part the words of a setting; name a folder without",
            key=key,
        )
    local = Path(source).expanduser()
    repository, _, revision = source.partition("@")
    if local.is_dir():
        repository, folder = "", local
        if not (folder / CONFIG).is_file():
            raise ConfigError(
                f"the folder {source!r} holds no checkpoint: {folder / CONFIG} is missing", key=key
            )
    elif source.startswith(("/", ".", "~")) or repository.count("/") != 1:
        raise ConfigError(
            f"there is no folder {source!r}, and it is no model of the hub either, which are "
            "called owner/name",
            key=key,
        )
    else:
        folder = hub_folder(source, repository, revision or None, key=key)
    try:
        model_type = str(json.loads((folder / CONFIG).read_text("utf-8")).get("model_type", ""))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{folder / CONFIG} cannot be read: {error}", key=key) from error
    if model_type not in allowed:
        raise ConfigError(
            f"checkpoint {source!r} is {model_type or 'of no model type that it says'!r}; "
            f"allowed here: {', '.join(sorted(allowed))}",
            key=key,
        )
    family = importlib.import_module("transformers").AutoConfig
    try:
        with quiet():
            config = family.from_pretrained(folder, local_files_only=True)
    except (OSError, *_REFUSALS) as error:
        raise ConfigError(f"{folder / CONFIG} cannot be used: {error}", key=key) from error
    return Checkpoint(source, folder, config, model_type, key, repository)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep `transformers` from telling what it does: what is wrong, we say ourselves."""
    logging = importlib.import_module("transformers").utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def content_hash(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:  # so the hub's cache names it
        return blob.name
    state = blob.stat()
    return _hash(blob, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
