from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError

import pytest

from hffm_flower.rpc.reactor import Reactor


async def double(value: int) -> int:
    await asyncio.sleep(0)
    return 2 * value


async def fail() -> None:
    raise ValueError("no")


def test_work_is_done_elsewhere_and_its_errors_come_back() -> None:
    with Reactor() as reactor:
        assert reactor.run(double(4)) == 8
        assert [f.result() for f in [reactor.start(double(i)) for i in range(3)]] == [0, 2, 4]
        with pytest.raises(ValueError, match="no"):
            reactor.run(fail())


def test_closing_cancels_what_runs_and_may_be_done_twice() -> None:
    reactor = Reactor()
    running = reactor.start(asyncio.sleep(60))
    reactor.run(double(1))
    reactor.close()
    reactor.close()
    with pytest.raises(CancelledError):
        running.result(0)
