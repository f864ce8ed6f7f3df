"""What a device is: its modalities, its tasks and how much it has of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NodeProfile:
    """One device of the tree.

    Attributes:
        index: Position among all devices of the run, 0-based.
        modalities: What the device collects, sorted, e.g. ``("image", "text")``.
        tasks: Tasks that it trains -> local training examples. Empty: the device is idle.
        wanted: Tasks that it was given, trainable or not.
        tests: Tasks -> examples of its shard of the test set.
        peer: ``host:port`` where other devices reach it; empty: nowhere.
        rank: Rank of its LoRA in the backbone; 0: it has none.
        experts: Experts that it holds.
    """

    index: int
    modalities: tuple[str, ...]
    tasks: Mapping[str, int]
    wanted: tuple[str, ...] = ()
    tests: Mapping[str, int] = field(default_factory=dict)
    peer: str = ""
    rank: int = 0
    experts: tuple[int, ...] = ()

    @property
    def idle(self) -> bool:
        """Whether the device has nothing to train."""
        return not self.tasks
