"""The frozen layers in front of the first adapted one, run once per example and cached.

They are to the feature cache what an encoder is, only that it reads examples whole: its key is
the inputs together, since what comes out of a layer depends on all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from hffm_flower.data.dataset import Item
from hffm_flower.models.encoders.encoder import Encoder, Stream, Tokens, batches, fingerprint_of
from hffm_flower.models.parts import ModelSpec, streams_of

CODE: Final = "prefix-1"  # raise when the outputs change


@dataclass(frozen=True, slots=True)
class Example:
    """One example's inputs: modality -> item."""

    inputs: Mapping[str, Item]

    @property
    def digest(self) -> str:
        """Hex SHA-256 of which inputs there are and of their contents."""
        told = "\n".join(f"{m} {item.digest}" for m, item in sorted(self.inputs.items()))
        return hashlib.sha256(told.encode()).hexdigest()


class FrozenPrefix:
    """Raw inputs of an example in, states of its tokens in front of the first adapted layer out.

    Args:
        task: Name in `TASKS`.
        spec: The run's model; `behind_prefix` holds for the task and ``encoders``.
        encoders: Modality -> its encoder, for the modalities that the examples have.
        frozen: The backbone's frozen part.
        seed: Of random weights.
    """

    cacheable: Final = True

    def __init__(
        self,
        task: str,
        spec: ModelSpec,
        *,
        encoders: Mapping[str, Encoder],
        frozen: nn.Module,
        seed: int,
    ) -> None:
        self._spec, self._encoders, self._frozen, self._seed = spec, encoders, frozen, seed
        self._modality_of = streams_of(task, encoders)
        self.streams: dict[str, Stream] = {
            stream: encoders[modality].streams[stream]
            for stream, modality in self._modality_of.items()
        }

    def fingerprint(self) -> str:
        """Hex SHA-256 of the layers, of how many of them, and of the encoders."""
        spec = self._spec
        read = [
            part for stream, modality in self._modality_of.items()
            for part in (stream, self._encoders[modality].fingerprint())
        ]  # fmt: skip
        layers = spec.family.fingerprint(spec.weights, self._seed)
        return fingerprint_of(CODE, layers, spec.precision, spec.untouched, *read)

    @torch.no_grad()
    def encode(self, items: Sequence[Example]) -> dict[str, Tokens]:
        """States of every stream, zeros where there is no token; an example's bits are its own."""
        spec = self._spec
        found: dict[str, list[Tokens]] = {stream: [] for stream in self.streams}
        for batch, real in batches(items):
            read = [
                self._encoders[m].encode([example.inputs[m] for example in batch])[stream]
                for stream, m in self._modality_of.items()
            ]
            on = next(self._frozen.parameters()).device
            mask = torch.cat([tokens.mask for tokens in read], 1)
            x = torch.cat([tokens.values for tokens in read], 1).to(on)
            out = spec.family.prefix(self._frozen, x, mask.to(on), spec.untouched).cpu()
            out = (out * mask[:, :, None])[:real]
            at = 0
            for stream, shape in self.streams.items():
                rows = slice(at, at + shape.tokens)
                found[stream].append(Tokens(out[:, rows], mask[:real, rows]))
                at += shape.tokens
        return {
            stream: Tokens(torch.cat([t.values for t in parts]), torch.cat([t.mask for t in parts]))
            for stream, parts in found.items()
        }
