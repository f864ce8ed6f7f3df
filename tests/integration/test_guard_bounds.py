"""What strangers cannot make a guard hand on: too much, too slowly, over too many connections."""

from __future__ import annotations

import contextlib
import logging
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hffm_flower.errors import ConfigError
from hffm_flower.session.guard import LINES, MIB, Bounds, Quiet, main
from tests.integration.test_guard import Guarded, SuperLink

PUSH = "/v1/fleet/push-object"
SMALL = "/v1/fleet/activate-node"


def head(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def status(link: ssl.SSLSocket) -> int:
    return int(link.recv(4096).split(b" ")[1])


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guard")
    guard = Guarded(folder, push_mib=1, all_mib=2, per_address=4, stall_s=1, body_s=5)
    yield guard
    guard.end()


@pytest.mark.parametrize(("path", "length"), [
    (SMALL, 1_500_000_000), (SMALL, MIB + 1), (PUSH, MIB + 1), ("/v1/fleet/anything", MIB + 1),
])  # fmt: skip
def test_a_length_over_the_bound_is_refused_unread(
    bounded: Guarded, path: str, length: int
) -> None:
    before = len(SuperLink.seen)
    with bounded.connected() as link:
        link.sendall(head(path, length))
        assert status(link) == 413
    assert len(SuperLink.seen) == before
    said = bounded.log.read_text().splitlines()[-1]
    assert f"refused POST b'{path}' from 127.0.0.1: {length} bytes are more than" in said


@pytest.mark.parametrize("path", [SMALL, PUSH])
def test_a_body_without_a_length_is_counted(bounded: Guarded, path: str) -> None:
    before = len(SuperLink.seen)
    parts = iter([bytes(700_000)] * 3)
    assert bounded.client.post(path, content=parts).status_code == 413
    assert len(SuperLink.seen) == before
    assert bounded.client.post(path, content=iter([bytes(MIB)])).status_code == 418


def test_one_who_is_refused_while_sending_reads_the_answer(bounded: Guarded) -> None:
    answer = bounded.client.post(SMALL, content=bytes(8 * MIB))
    assert (answer.status_code, answer.text) == (413, f"{8 * MIB} bytes are more than {MIB}\n")


def test_a_push_may_be_larger_than_other_calls(tmp_path: Path) -> None:
    guard = Guarded(tmp_path, push_mib=2)
    try:
        assert guard.client.post(PUSH, content=bytes(2 * MIB)).status_code == 418
        assert guard.client.post(SMALL, content=bytes(2 * MIB)).status_code == 413
    finally:
        guard.end()
    assert Bounds().body_bytes(b"/v1/fleet/push-messages") == 64 * MIB


def test_all_bodies_together_are_bounded(bounded: Guarded) -> None:
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(bounded.connected()) for _ in range(3)]
        for link in links[:2]:
            link.sendall(head(PUSH, MIB) + bytes(MIB - 1))
        time.sleep(0.3)
        links[2].sendall(head(PUSH, 10) + bytes(10))
        assert [status(link) for link in links] == [408, 408, 503]
    assert bounded.client.post(PUSH, content=bytes(MIB)).status_code == 418, "all is forgotten"


def test_a_body_that_stops_or_drips_is_given_up(bounded: Guarded) -> None:
    with bounded.connected() as stopped:
        began = time.monotonic()
        stopped.sendall(head(PUSH, 100) + b"x")
        assert status(stopped) == 408
        assert 0.9 < time.monotonic() - began < 4.5
    with bounded.connected() as dripping:
        began = time.monotonic()
        dripping.sendall(head(PUSH, 100))
        dripping.settimeout(0.3)
        while time.monotonic() - began < 20:
            with contextlib.suppress(TimeoutError):
                assert status(dripping) == 408
                break
            dripping.sendall(b"x")
        assert 4.9 < time.monotonic() - began < 20


def test_connections_of_one_address_are_bounded(bounded: Guarded) -> None:
    bounded.client.close()
    time.sleep(0.2)
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(bounded.connected()) for _ in range(4)]
        with pytest.raises(OSError), bounded.connected():  # noqa: PT011
            pass
        assert "no room for a connection from 127.0.0.1" in bounded.log.read_text()
        links[0].close()
        time.sleep(0.2)
        with bounded.connected() as link:
            link.sendall(head(SMALL, 0))
            assert status(link) == 418


def test_a_flood_of_refusals_is_a_few_lines() -> None:
    quiet = Quiet()

    def line(message: str, at: float) -> logging.LogRecord:
        record = logging.LogRecord("x", logging.WARNING, "", 0, message, ("1.2.3.4",), None)
        record.created = at
        return record

    said = [r for r in (line("refused %s", 100.0) for _ in range(5000)) if quiet.filter(r)]
    assert len(said) == LINES
    assert said[-1].getMessage().startswith("refused 1.2.3.4 (more lines like this")
    assert quiet.filter(line("the SuperLink does not answer: %s", 101.0))
    assert quiet.filter(line("refused %s", 161.0))


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "1.5"])
def test_bounds_that_are_no_numbers_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="HFFM_GUARD_PUSH_MIB must be a positive whole number"):
        Bounds.read({"HFFM_GUARD_PUSH_MIB": text})
    monkeypatch.setenv("HFFM_GUARD_STALL_S", text)
    with pytest.raises(SystemExit, match="error: HFFM_GUARD_STALL_S must be"):
        main("127.0.0.1:1", "127.0.0.1:2")
