"""What one device has in memory of a task: tokens of its inputs, and targets."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hffm_flower.data.dataset import Dataset, Indices, Split
from hffm_flower.errors import ConfigError
from hffm_flower.models.encoders import Encoder, FeatureCache, Tokens
from hffm_flower.tasks import TASKS


@dataclass(frozen=True, slots=True)
class TaskData:
    """Examples of one task with the same streams.

    Attributes:
        task: Name in `TASKS`.
        inputs: Stream -> tokens of the n examples, for the modalities that the device has.
        targets: Classes int64 [n], or boxes float32 [n, 4].
    """

    task: str
    inputs: Mapping[str, Tokens]
    targets: Tensor

    @property
    def modalities(self) -> frozenset[str]:
        """Modalities that the examples have."""
        return frozenset(m for m, s in TASKS[self.task].inputs.items() if s in self.inputs)

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> TaskData:
        """The same examples on ``device``."""
        inputs = {s: t.to(device) for s, t in self.inputs.items()}
        return TaskData(self.task, inputs, self.targets.to(device))

    def index(self, rows: Tensor) -> TaskData:
        """The examples ``rows``, in that order."""
        inputs = {s: t.index(rows) for s, t in self.inputs.items()}
        return TaskData(self.task, inputs, self.targets[rows])


def load_task(
    task: str,
    dataset: Dataset,
    *,
    split: Split,
    indices: Indices,
    encoders: Mapping[str, Encoder],
    modalities: Collection[str],
    cache: FeatureCache,
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
    inputs = {}
    for modality in usable:
        stream = spec.inputs[modality]
        items = dataset.items(modality, split, indices)
        inputs[stream] = cache.features(encoders[modality], items)[stream]
    return TaskData(task, inputs, torch.from_numpy(dataset.targets(split, indices)))


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
