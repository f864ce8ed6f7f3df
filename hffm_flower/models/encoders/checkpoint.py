"""Encoders whose network, weights and preprocessing are a checkpoint of `transformers`.

One class for each modality, of which `CheckpointEncoder.of` makes one for each checkpoint. The
network runs as `transformers` wrote it, without its last blocks and without what follows
them; the `BlockTail` of as many blocks, or of none, is the rest.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any, ClassVar, Final, Literal, Self, cast

import torch
from torch import Tensor, nn

from hffm_flower.data.dataset import Item
from hffm_flower.errors import ConfigError
from hffm_flower.models.checkpoints import Checkpoint, find_checkpoint
from hffm_flower.models.encoders.encoder import (
    Stream,
    Tail,
    Tokens,
    Weights,
    batches,
    check_cut,
    cut_mark,
    fingerprint_of,
)
from hffm_flower.models.hub import CONFIG

Precision = Literal["fp32", "bf16"]

CODE: Final = "checkpoint-1"  # raise when the outputs change
PREFIX: Final = "hf:"
"""Of an encoder's name in a run's settings: what follows calls a checkpoint."""
DTYPES: Final[Mapping[str, torch.dtype]] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Where the parts of a network of `transformers` are; paths as in `get_submodule`.

    Attributes:
        network: Its class.
        blocks: List of its blocks.
        norm: What follows the last block; empty: nothing.
        head: What makes one summary of all tokens; empty: nothing.
        body: What encodes, the root of the other paths; empty: the whole network.
        prefix: Tokens in front of those of the patches.
        changes: Of its configuration, and options of its constructor.
        options: Of its `forward`.
    """

    network: str
    blocks: str
    norm: str = ""
    head: str = ""
    body: str = ""
    prefix: int = 0
    changes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


class CheckpointEncoder(ABC):
    """An encoder of a checkpoint; see `Encoder`.

    Attributes:
        anatomies: Architectures that it can read, as `transformers` calls them.
        files: What it needs beside configuration and weights; of each group one.
        extras: What else of the folder changes its outputs, where it is there.
        masked: Whether items have fewer tokens than there is room for.
        checkpoint: Where all comes from.
        anatomy: That of the checkpoint.
        precision: In which the frozen part computes.
        weights_bytes: What its weights take in memory, known after `check` [byte].
    """

    assets: ClassVar[tuple[str, ...]] = ()
    modality: ClassVar[str]
    streams: Mapping[str, Stream]
    cacheable: ClassVar[bool] = True
    blocks: ClassVar[int]
    anatomies: ClassVar[Mapping[str, Anatomy]]
    files: ClassVar[tuple[tuple[str, ...], ...]]
    extras: ClassVar[tuple[str, ...]] = ()
    masked: ClassVar[bool] = False
    checkpoint: ClassVar[Checkpoint]
    anatomy: ClassVar[Anatomy]
    precision: ClassVar[Precision]

    @classmethod
    def of(cls, source: str, precision: Precision) -> type[Self]:
        """The encoder of one checkpoint; its weights are not read yet.

        Raises:
            ConfigError: There is no such checkpoint, or it is of another architecture.
        """
        checkpoint = find_checkpoint(source, allowed=cls.anatomies, key="model.encoders")
        anatomy = cls.anatomy_of(checkpoint)
        config = checkpoint.config_for(anatomy.network)
        facts = {
            "checkpoint": checkpoint,
            "anatomy": anatomy,
            "precision": precision,
            "blocks": config.num_hidden_layers,
            "streams": cls.streams_of(config.hidden_size),
        }
        return cast("type[Self]", type(cls.__name__, (cls,), facts))

    @classmethod
    def anatomy_of(cls, checkpoint: Checkpoint) -> Anatomy:
        """Where the parts of a checkpoint's network are."""
        return cls.anatomies[checkpoint.model_type]

    @classmethod
    @abstractmethod
    def streams_of(cls, width: int) -> Mapping[str, Stream]:
        """Shapes of the streams of an encoder whose blocks have ``width``."""

    @classmethod
    @abstractmethod
    def front_tokens(cls) -> int:
        """How many tokens go through the blocks."""

    @classmethod
    @abstractmethod
    def prepare(cls, items: Sequence[Item]) -> dict[str, Tensor]:
        """Inputs of the network; an item's bits are its own.

        Raises:
            TypeError: An item is nothing that it reads.
            ConfigError: What prepares the items is missing, or does not fit the network.
        """

    @classmethod
    @abstractmethod
    def pool(cls, stream: str, tokens: Tokens, head: nn.Module | None) -> Tokens:
        """Tokens of a stream, from those behind the last block."""

    @classmethod
    @abstractmethod
    def blank(cls) -> Item:
        """An item to try the encoder with."""

    def __init__(self, weights: Weights, seed: int, device: torch.device, cut: int = 0) -> None:
        self._weights: Weights = weights
        self._seed = seed
        self._device = device
        self._cut = cut
        self.weights_bytes = 0
        self.streams = self.cut_streams(cut)

    @classmethod
    def cut_streams(cls, cut: int) -> Mapping[str, Stream]:
        """At a cut every stream has all tokens of the network."""
        if check_cut(f"{PREFIX}{cls.checkpoint.source}", cls.blocks, cut) == 0:
            return cls.streams
        tokens = cls.front_tokens()
        return {name: Stream(tokens, shape.width) for name, shape in cls.streams.items()}

    @classmethod
    def passing(cls, cut: int) -> frozenset[str]:
        """All streams, if anything is cut."""
        return frozenset(cls.streams if cut else ())

    def fingerprint(self) -> str:
        """Hex SHA-256 of weights, preprocessing, code and precision.

        Raises:
            ConfigError: A file is missing; the message says which and how to get it.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        held, drawn = self.checkpoint, self._weights == "random"
        source = (held.digest(CONFIG), self._seed) if drawn else (held.fingerprint,)
        shapes = [f"{n}:{s.tokens}x{s.width}" for n, s in type(self).streams.items()]
        return fingerprint_of(
            CODE, version("transformers"), self._weights, *source,
            held.digest_of(self.files, self.extras), self.precision, *shapes, *cut_mark(self._cut),
        )  # fmt: skip

    def check(self) -> None:
        """Read all files and encode one item, so that no later one fails; weights are let go.

        Raises:
            ConfigError: A file is missing, cannot be read, or does not fit the others.
        """
        self.fingerprint()
        try:
            made = self.encode([self.blank()])
            if not all(tokens.values.isfinite().all() for tokens in made.values()):
                raise ValueError("its tokens are not finite")
        except (OSError, RuntimeError, ValueError, TypeError, LookupError) as error:
            raise ConfigError(
                f"checkpoint {self.checkpoint.source!r} in {self.checkpoint.folder} cannot encode "
                f"{self.modality}: {error}",
                key=self.checkpoint.key,
            ) from error
        body, blocks, ends = self._parts
        self.weights_bytes = sum(
            p.nbytes for part in (body, blocks, *ends.values()) for p in part.parameters()
        )
        for name in ("_parts", "_end"):
            self.__dict__.pop(name, None)

    @torch.no_grad()
    def encode(self, items: Sequence[Item]) -> dict[str, Tokens]:
        """Tokens of every stream at the cut."""
        shapes = self.streams.items()
        out = {
            name: Tokens(
                torch.zeros(len(items), shape.tokens, shape.width),
                torch.zeros(len(items), shape.tokens, dtype=torch.bool),
            )
            for name, shape in shapes
        }
        at = 0
        for batch, real in batches(items):
            front = self._at_cut(batch)
            for name, tokens in out.items():
                found = front if self._cut else self._end(name, front)
                tokens.values[at : at + real] = found.values[:real].cpu()
                tokens.mask[at : at + real] = found.mask[:real].cpu()
            at += real
        return out

    def _at_cut(self, items: Sequence[Item]) -> Tokens:
        """Tokens in front of the cut, float32, on the encoder's device."""
        body, _, _ = self._parts
        real = DTYPES[self.precision]
        inputs = {
            name: tensor.to(self._device, real if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in self.prepare(items).items()
        }
        found = body(**inputs, **self.anatomy.options).last_hidden_state
        values = cast(Tensor, found).float()
        if not self.masked:
            return Tokens(values, values.new_ones(values.shape[:2], dtype=torch.bool))
        mask = inputs["attention_mask"].bool()
        return Tokens(values * mask[:, :, None], mask)

    def tail(self) -> Tail:
        """Blocks ``0``, ``1``, ... behind the cut, then ``norm`` and ``head`` if there are any."""
        _, blocks, ends = self._parts
        return BlockTail(type(self), blocks, ends if self._cut else {}, self.passing(self._cut))

    @classmethod
    def layer_name(cls, name: str, cut: int) -> str:
        """Name in the network of a tail's layer: ``encoder.layers.11.self_attn.q_proj``.

        Args:
            name: As in the tail: ``0.self_attn.q_proj``, ``head.mlp.fc1``.
            cut: Where the tail begins.
        """
        part, _, rest = name.partition(".")
        held = cls.anatomy
        paths = {"norm": held.norm, "head": held.head}
        path = paths.get(part) or f"{held.blocks}.{cls.blocks - cut + int(part)}"
        return ".".join(filter(None, (held.body, path, rest)))

    @cached_property
    def _end(self) -> Tail:
        """What follows the last block."""
        _, _, ends = self._parts
        return BlockTail(type(self), (), ends, type(self).streams)

    @cached_property
    def _parts(self) -> tuple[Any, nn.ModuleList, dict[str, nn.Module]]:
        """The network up to the cut, the blocks behind it, and what follows them."""
        anatomy = self.anatomy
        network = self.checkpoint.load(
            anatomy.network, self._weights, seed=self._seed, **anatomy.changes
        )
        body = self.shaped(network.get_submodule(anatomy.body))
        ends = {}
        for name, path in (("norm", anatomy.norm), ("head", anatomy.head)):
            if path:
                ends[name] = body.get_submodule(path)
                body.set_submodule(path, nn.Identity())
        blocks = cast(nn.ModuleList, body.get_submodule(anatomy.blocks))
        first = self.blocks - self._cut
        body.set_submodule(anatomy.blocks, blocks[:first])
        body.to(DTYPES[self.precision])
        for part in (body, blocks, *ends.values()):
            part.to(self._device)
        return body, blocks[first:], ends

    @classmethod
    def shaped(cls, body: nn.Module) -> nn.Module:
        """The network as it fits the inputs."""
        return body


class BlockTail(Tail):
    """Last blocks of a network and what follows them, float32; copies."""

    def __init__(
        self,
        kind: type[CheckpointEncoder],
        blocks: Iterable[nn.Module],
        ends: Mapping[str, nn.Module],
        streams: Iterable[str],
    ) -> None:
        numbered = {str(i): block for i, block in enumerate(blocks)}
        super().__init__(copy.deepcopy({**numbered, **ends}), streams)
        self._kind = kind
        self._blocks = tuple(numbered)

    def run(self, stream: str, tokens: Tokens) -> Tokens:
        """As in `Tail`; only real tokens are attended to, and the others stay zero."""
        x, mask = tokens.values, tokens.mask
        parts: dict[str, nn.Module] = dict(self.named_children())
        hidden = None
        if self._kind.masked:
            hidden = torch.zeros_like(mask, dtype=x.dtype)
            hidden = hidden.masked_fill(~mask, torch.finfo(x.dtype).min)[:, None, None, :]
        for name in self._blocks:
            x = parts[name](x, hidden)
        if "norm" in parts:
            x = parts["norm"](x)
        if self._kind.masked:
            x = x * mask[:, :, None]
        return self._kind.pool(stream, Tokens(x, mask), parts.get("head"))
