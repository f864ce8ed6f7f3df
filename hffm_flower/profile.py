"""What a device is: its modalities, its tasks and how much it has of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from hffm_flower.errors import ProtocolError

MOST: Final = 1024
"""Highest rank, and highest index of an expert."""


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
        lent: Experts of others that its memory has room for besides.
    """

    index: int
    modalities: tuple[str, ...]
    tasks: Mapping[str, int]
    wanted: tuple[str, ...] = ()
    tests: Mapping[str, int] = field(default_factory=dict)
    peer: str = ""
    rank: int = 0
    experts: tuple[int, ...] = ()
    lent: int = 0

    @property
    def idle(self) -> bool:
        """Whether the device has nothing to train."""
        return not self.tasks


def profile_json(profile: NodeProfile) -> dict[str, Any]:
    """A profile as plain data; inverse of `profile_of`."""
    return asdict(profile)


def profile_of(raw: Mapping[str, Any]) -> NodeProfile:
    """Read `profile_json` back.

    Raises:
        KeyError: A field is missing.
        ValueError: A field is not what it should be.
    """
    return NodeProfile(
        index=int(raw["index"]),
        modalities=tuple(raw["modalities"]),
        tasks={str(t): int(n) for t, n in raw["tasks"].items()},
        wanted=tuple(raw["wanted"]),
        tests={str(t): int(n) for t, n in raw["tests"].items()},
        peer=str(raw.get("peer", "")),
        rank=whole(raw.get("rank", 0), "rank"),
        experts=tuple(whole(j, "expert") for j in raw.get("experts", ())),
        lent=whole(raw.get("lent", 0), "number of lent experts"),
    )


def whole(value: object, what: str, least: int = 0) -> int:
    """``value``, if it is a whole number that can be a rank or the index of an expert.

    Raises:
        ProtocolError: It is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
        raise ProtocolError(f"{value!r} is no {what}; allowed: {least} to {MOST}")
    return value
