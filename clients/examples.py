"""What one device has in memory of a task: tokens of its inputs, and targets."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from hffm_flower.data.dataset import Dataset, Indices, Split
from hffm_flower.errors import ConfigError
from hffm_flower.models.encoders import Encoder, FeatureCache, Tokens
from hffm_flower.models.prefix import Example, FrozenPrefix
from hffm_flower.tasks import TASKS


@dataclass(frozen=True, slots=True)
class TaskData:
    """Examples of one task with the same streams.

    Attributes:
        task: Name in `TASKS`.
        inputs: Stream -> tokens of the n examples, for the modalities that the device has.
        targets: What the head is to answer, in its form, e.g. classes int64 [n].
    """

    task: str
    inputs: Mapping[str, Tokens]
    targets: Tensor

    @property
    def modalities(self) -> frozenset[str]:
        """Modalities that the examples have."""
        return frozenset(m for m, s in TASKS[self.task].fused.items() if s in self.inputs)

    def __len__(self) -> int:
        return len(self.targets)

    def without(self, modalities: Collection[str]) -> TaskData:
        """The same examples, as if the device did not have ``modalities``."""
        if not modalities:
            return self
        gone = {s for m, s in TASKS[self.task].fused.items() if m in modalities}
        kept = {s: t for s, t in self.inputs.items() if s not in gone}
        return TaskData(self.task, kept, self.targets)

    def to(self, device: torch.device) -> TaskData:
        """The same examples on ``device``."""
        inputs = {s: t.to(device) for s, t in self.inputs.items()}
        return TaskData(self.task, inputs, self.targets.to(device))

    def index(self, rows: Tensor) -> TaskData:
        """The examples ``rows``, in that order."""
        inputs = {s: t.index(rows) for s, t in self.inputs.items()}
        return TaskData(self.task, inputs, self.targets[rows])


MOST_KEPT: Final = 2**29
"""Examples of all devices that a process keeps in memory [byte]."""


class ExampleMemory:
    """Loaded examples by what they are of; the least recently used go when there are too many.

    Args:
        most_bytes: How much to keep [byte]; what is asked for last is kept in any case.
    """

    def __init__(self, most_bytes: int = MOST_KEPT) -> None:
        self._most_bytes = most_bytes
        self._held: OrderedDict[Hashable, list[TaskData]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, load: Callable[[], list[TaskData]]) -> list[TaskData]:
        """Examples of ``key``, loaded at the first time; not to be changed."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        self._held[key] = loaded = load()
        self._bytes += _size(loaded)
        while self._bytes > self._most_bytes and len(self._held) > 1:
            _, oldest = self._held.popitem(last=False)
            self._bytes -= _size(oldest)
        return loaded

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        self._bytes = 0


def _size(parts: Iterable[TaskData]) -> int:
    return sum(
        part.targets.nbytes + sum(t.values.nbytes + t.mask.nbytes for t in part.inputs.values())
        for part in parts
    )


def load_task(
    task: str,
    dataset: Dataset,
    *,
    split: Split,
    indices: Indices,
    encoders: Mapping[str, Encoder],
    modalities: Collection[str],
    cache: FeatureCache,
    finder: Encoder | None = None,
    prefix: FrozenPrefix | None = None,
) -> TaskData:
    """Load a device's examples ``indices`` of a task, encoded.

    Args:
        task: Name in `TASKS`.
        dataset: The task's data set.
        split: Part of the data set.
        indices: Examples of that part, in the order wanted.
        encoders: Modality -> its encoder.
        modalities: What the device has; nothing else is read.
        cache: Where tokens are kept.
        finder: Encoder of the modality that the task is to find, whole.
        prefix: Frozen layers that the tokens have to pass; None: none.

    Raises:
        ConfigError: The device or the encoders lack a modality that the task requires.
    """
    spec = TASKS[task]
    usable = [m for m in spec.inputs if m in modalities and m in encoders]
    lost = sorted(set(spec.required) - set(usable))
    if lost:
        raise ConfigError(
            f"task {task!r} requires {', '.join(lost)}; this device has "
            f"{', '.join(sorted(modalities)) or 'nothing'}, its encoders read "
            f"{', '.join(sorted(encoders)) or 'nothing'}",
            key="data.tasks",
        )
    items = {m: dataset.items(m, split, indices) for m in usable if m in spec.fused}
    if prefix is not None:
        rows = [dict(zip(items, row, strict=True)) for row in zip(*items.values(), strict=True)]
        inputs = cache.features(prefix, [Example(row) for row in rows])
    else:
        streams = {m: spec.inputs[m] for m in items}
        inputs = {s: cache.features(encoders[m], items[m])[s] for m, s in streams.items()}
    targets = torch.from_numpy(dataset.targets(split, indices))
    if finder is not None:
        distinct, at = torch.unique(targets, return_inverse=True)
        found = dataset.items(spec.target, split, distinct.numpy())
        targets = mean_tokens(cache.features(finder, found)[spec.inputs[spec.target]])[at]
    return TaskData(task, inputs, targets)


def mean_tokens(tokens: Tokens) -> Tensor:
    """Mean [N, D] of the tokens that are there."""
    there = tokens.mask[:, :, None]
    mean: Tensor = (tokens.values * there).sum(1) / there.sum(1).clamp_min(1)
    return mean


def pool(parts: Iterable[TaskData]) -> list[TaskData]:
    """Join the parts that have the same task and streams, in the order of their first part."""
    groups: dict[tuple[str, tuple[str, ...]], list[TaskData]] = {}
    for part in parts:
        groups.setdefault((part.task, tuple(sorted(part.inputs))), []).append(part)
    return [
        TaskData(
            task,
            {
                s: Tokens(
                    torch.cat([p.inputs[s].values for p in same]),
                    torch.cat([p.inputs[s].mask for p in same]),
                )
                for s in streams
            },
            torch.cat([p.targets for p in same]),
        )
        for (task, streams), same in groups.items()
    ]
