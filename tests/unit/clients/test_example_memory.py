"""Examples that a process keeps: each loaded once, the least recently used go."""

from __future__ import annotations

import torch

from clients.examples import ExampleMemory, TaskData
from hffm_flower.models.encoders.encoder import full


def parts(bytes_: int) -> list[TaskData]:
    """One part of ``bytes_`` [byte] in all."""
    values = torch.zeros(1, 1, (bytes_ - 1 - 8) // 4)
    return [TaskData("watch7", {"sensor": full(values)}, torch.zeros(1, dtype=torch.int64))]


def test_what_is_used_stays_and_what_is_not_goes() -> None:
    memory, loaded = ExampleMemory(most_bytes=3000), []

    def get(name: str) -> list[TaskData]:
        def load() -> list[TaskData]:
            loaded.append(name)
            return parts(1000)

        return memory.get(name, load)

    first = get("a")
    assert get("a") is first
    get("b"), get("c"), get("a"), get("d")
    assert loaded == ["a", "b", "c", "d"]
    get("a"), get("c"), get("d")
    assert loaded == ["a", "b", "c", "d"], "b was used least recently"
    get("b")
    assert loaded[-1] == "b"


def test_the_last_one_is_kept_however_large() -> None:
    memory = ExampleMemory(most_bytes=10)
    big = memory.get("big", lambda: parts(1000))
    assert memory.get("big", lambda: parts(1)) is big
    memory.clear()
    assert memory.get("big", lambda: parts(500)) is not big
