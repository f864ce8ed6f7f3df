from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from clients.inbox import Inbox, Limits, Room
from hffm_flower.d2d import Parcel
from hffm_flower.errors import ConfigError
from hffm_flower.modules import ModularUpdate
from hffm_flower.rpc.codec import Envelope, Refused, Turn, Verdict
from tests.support.peers import FIRST, ROUND, RUN, allowed_for, tickets

NEXT = Turn(FIRST.phase, FIRST.segment, FIRST.step + 1)
EMPTY = (Parcel(ModularUpdate({}, {}), {}),)


def inbox(limits: Limits | None = None) -> tuple[Inbox, Room]:
    room = Room()
    devices = range(5)
    ticket = tickets({i: "x:1" for i in devices})[0]
    return Inbox(ticket, allowed_for(devices), limits or Limits(10, 20), room), room


async def put(box: Inbox, src: int, size: int = 10, turn: Turn = FIRST, pause_s: float = 0) -> None:
    async with box.admit(Envelope(RUN, ROUND, turn, src, 0), size) as place:
        await asyncio.sleep(pause_s)
        place.parcels = EMPTY


def soon(s: float = 0.1) -> float:
    return asyncio.get_running_loop().time() + s


async def take(box: Inbox, src: int, *, limit_s: float = 5.0) -> bool:
    return await box.take(src, door=soon(), limit=soon(limit_s)) is not None


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_the_message_that_is_needed_next_always_has_room() -> None:
    async def work() -> None:
        box, room = inbox()
        await box.begin(FIRST, [1, 2, 3])
        others = [asyncio.create_task(put(box, i)) for i in (3, 2)]
        await asyncio.sleep(0.01)
        assert [t.done() for t in others] == [True, False]
        await put(box, 1)
        assert room.used == 20
        assert [await take(box, i) for i in (1, 2, 3)] == [True] * 3
        await asyncio.gather(*others)
        assert (room.used, room.peak) == (0, 20)

    run(work())


def test_a_step_to_come_waits_at_the_door() -> None:
    async def work() -> None:
        box, room = inbox()
        await box.begin(FIRST, [])
        early = asyncio.create_task(put(box, 1, turn=NEXT))
        await asyncio.sleep(0.01)
        assert (early.done(), room.used) == (False, 0)
        await box.begin(NEXT, [1])
        assert await take(box, 1)
        await early

    run(work())


def test_who_missed_a_step_is_not_awaited_in_the_next() -> None:
    async def work() -> None:
        box, _ = inbox()
        await box.begin(FIRST, [1, 2])
        await put(box, 2)
        assert [await take(box, i) for i in (1, 2)] == [False, True]
        await box.begin(NEXT, [1, 2])
        began = soon(0.0)
        assert not await take(box, 1)
        assert soon(0.0) - began < 0.09
        for src, turn in ((1, NEXT), (1, FIRST)):
            with pytest.raises(Refused) as caught:
                await put(box, src, turn=turn)
            assert caught.value.verdict == Verdict.LATE
        later = Turn(NEXT.phase, NEXT.segment + 1, 0)
        await box.begin(later, [1])
        await put(box, 1, turn=later)
        assert await take(box, 1)

    run(work())


def test_who_is_at_the_door_in_time_may_finish() -> None:
    async def work() -> None:
        box, _ = inbox()
        await box.begin(FIRST, [1, 2])
        slow = asyncio.create_task(put(box, 1, pause_s=0.2))
        assert await take(box, 1)
        await slow
        assert not await take(box, 2)

    run(work())


def test_who_does_not_finish_is_left_behind() -> None:
    async def work() -> None:
        box, room = inbox()
        await box.begin(FIRST, [1])
        slow = asyncio.create_task(put(box, 1, pause_s=0.4))
        assert not await take(box, 1, limit_s=0.2)
        with pytest.raises(Refused) as caught:
            await slow
        assert caught.value.verdict == Verdict.LATE
        assert room.used == 0

    run(work())


def test_closing_frees_everything() -> None:
    async def work() -> None:
        box, room = inbox(Limits(10, 40))
        await box.begin(FIRST, [1, 2, 3])
        await put(box, 1)
        reading = asyncio.create_task(put(box, 2, pause_s=0.05))
        await asyncio.sleep(0.01)
        await box.close()
        with pytest.raises(Refused):
            await reading
        assert room.used == 0
        assert await box.take(1, door=soon(), limit=soon()) is None

    run(work())


@pytest.mark.parametrize(
    "bad",
    [
        {"message_bytes": 0},
        {"message_bytes": 3, "buffered_bytes": 2},
        {"streams": 0},
        {"stall_s": 0.0},
        {"opening_s": 0.0},
    ],
)
def test_limits_that_cannot_work_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Limits(**bad)
