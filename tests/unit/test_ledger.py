from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hffm_flower.errors import ConfigError
from hffm_flower.ledger import (
    PHASES,
    PRICED,
    Ledger,
    LinkClass,
    Phase,
    Transfer,
    from_line,
    link_between,
    node_of,
    to_line,
    traffic,
)


def row(**changes: Any) -> Transfer:
    parts: dict[str, Any] = {
        "t": 1, "phase": Phase.UP, "step": 0, "src": "device/0", "dst": "edge/0",
        "link": LinkClass.UPLINK, "header_bytes": 1, "modules": ("head/a",), "sizes": (10,),
    }  # fmt: skip
    return Transfer(**parts | changes)


addresses = st.one_of(
    st.just("cloud"),
    st.integers(0, 10**4).map("edge/{}".format),
    st.integers(0, 10**4).map("device/{}".format),
)
transfers = st.builds(
    row,
    t=st.just(7),
    phase=st.sampled_from(Phase),
    step=st.integers(0, 9),
    src=addresses,
    dst=addresses,
    link=st.sampled_from(LinkClass),
    header_bytes=st.integers(0, 2**53),
)
parts = st.lists(st.tuples(st.text(), st.integers(0, 2**53)), max_size=3)
transfers = st.builds(
    lambda made, held: replace(
        made, modules=tuple(name for name, _ in held), sizes=tuple(size for _, size in held)
    ),
    transfers,
    parts,
)


@given(st.lists(transfers))
def test_a_line_keeps_everything(rows: list[Transfer]) -> None:
    line = to_line(7, rows)
    assert "\n" not in line
    assert from_line(line) == (7, tuple(rows))


def test_a_line_names_a_module_once() -> None:
    rows = [row(modules=("head/a", "adapter/b"), sizes=(10, 4)),
            row(modules=("adapter/b",), sizes=(4,))]  # fmt: skip
    line = to_line(1, rows)
    assert line.count("adapter/b") == line.count("head/a") == 1
    assert [r[-1] for r in json.loads(line)["transfers"]] == [[0, 1], [1]]
    assert from_line(to_line(3, [])) == (3, ())


def test_a_module_of_two_ranks_has_two_sizes() -> None:
    rows = (row(sizes=(4,)), row(sizes=(8,)), row(src="device/1", sizes=(4,)))
    line = to_line(1, rows)
    assert json.loads(line)["modules"] == [["head/a", 4], ["head/a", 8]]
    assert from_line(line) == (1, rows)


def test_every_module_has_a_size_and_bytes_are_their_sum() -> None:
    assert row(modules=("head/a", "adapter/b"), sizes=(3, 4)).bytes == 7
    assert row(modules=(), sizes=()).bytes == 0
    with pytest.raises(ConfigError, match="1 modules with 2 sizes"):
        row(sizes=(1, 2))
    with pytest.raises(ConfigError, match="size = -4 of a transfer"):
        row(sizes=(-4,))


@pytest.mark.parametrize(
    "line",
    [
        "", "{}", "[]", "7", '{"t":1}', '{"t":1,"modules":[],"transfers":[[1,2]]}',
        to_line(1, [row()]).replace('"up"', '"sideways"'),
        to_line(1, [row()]).replace("[0]", "[5]"),
        to_line(1, [row()])[:-5],
    ],
)  # fmt: skip
def test_a_damaged_line_is_refused(line: str) -> None:
    with pytest.raises(ConfigError, match="not a line of transfers"):
        from_line(line)


def test_a_line_is_of_one_round() -> None:
    with pytest.raises(ConfigError, match="round 2 in the line of round 1"):
        to_line(1, [row(t=2)])


@pytest.mark.parametrize("name", ["t", "step", "header_bytes"])
def test_numbers_are_not_negative(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} = -1 of a transfer device/0 -> edge/0"):
        row(**{name: -1})
    assert getattr(row(**{name: 0}), name) == 0


@pytest.mark.parametrize(
    ("src", "dst", "link"),
    [
        ("device/1", "device/2", LinkClass.D2D),
        ("device/1", "edge/1", LinkClass.UPLINK),
        ("edge/0", "device/0", LinkClass.DOWNLINK),
        ("edge/0", "cloud", LinkClass.BACKHAUL),
        ("cloud", "edge/12", LinkClass.BACKHAUL),
    ],
)
def test_links_by_address(src: str, dst: str, link: LinkClass) -> None:
    assert link_between(src, dst) is link


@pytest.mark.parametrize(
    ("src", "dst", "message"),
    [
        ("device/1", "cloud", "no link from device/1 to cloud"),
        ("cloud", "device/1", "no link from cloud to device/1"),
        ("edge/0", "edge/1", "no link from edge/0 to edge/1"),
        ("cloud", "cloud", "no link"),
        ("device/1", "device/1", "no link"),
        ("phone/1", "edge/0", "unknown address 'phone/1'; allowed: cloud, edge/<index>"),
        ("device/1", "edge", "unknown address 'edge'"),
        ("device/-1", "edge/0", "unknown address 'device/-1'"),
        ("device/01", "edge/0", "unknown address 'device/01'"),
        ("device/²", "edge/0", "unknown address"),
        ("cloud/0", "edge/0", "unknown address 'cloud/0'"),
    ],
)
def test_what_no_link_joins(src: str, dst: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        link_between(src, dst)


def test_addresses() -> None:
    assert [node_of(a) for a in ("cloud", "edge/3", "device/17")] == [
        ("cloud", 0), ("edge", 3), ("device", 17),
    ]  # fmt: skip


def test_take_sorts_by_phase_step_and_nodes() -> None:
    ledger = Ledger()
    late = row(phase=Phase.COLLECT, src="edge/0", dst="cloud")
    ten, two = row(src="device/10"), row(src="device/2")
    again, step = row(src="device/2", header_bytes=900, sizes=(3,)), row(step=1)
    down = row(phase=Phase.DOWN, src="edge/0", dst="device/2")
    other = row(t=2)
    ledger.extend([late, step, ten, two])
    ledger.add(other)
    ledger.extend([again, down])
    assert len(ledger.rows) == 7
    assert ledger.take(1) == (down, two, again, ten, step, late)
    assert list(ledger.rows) == [other]
    assert ledger.take(1) == ()
    assert ledger.take(2) == (other,)


def test_threads_lose_nothing() -> None:
    ledger = Ledger()
    taken: list[Transfer] = []
    go = threading.Barrier(5)

    def write(device: int) -> None:
        go.wait()
        for size in range(500):
            ledger.add(row(src=f"device/{device}", sizes=(size,)))

    threads = [threading.Thread(target=write, args=(d,)) for d in range(4)]
    for thread in threads:
        thread.start()
    go.wait()
    while any(thread.is_alive() for thread in threads):
        taken += ledger.take(1)
    for thread in threads:
        thread.join()
    taken += ledger.take(1)
    assert sorted((r.src, r.bytes) for r in taken) == [
        (f"device/{d}", size) for d in range(4) for size in range(500)
    ]


def test_the_order_of_a_round() -> None:
    assert [p.value for p in PHASES] == [
        "setup", "dispatch", "down", "share", "exchange", "up", "ask", "repair", "collect",
        "publish", "evaluate",
    ]  # fmt: skip
    orders = [row(phase=p, step=s).order for p in PHASES for s in (0, 1)]
    assert orders == sorted(orders)
    assert set(PHASES) - set(PRICED) == {Phase.SETUP, Phase.EVALUATE}


def test_traffic_by_class() -> None:
    rows = [
        row(), row(sizes=(5,), header_bytes=2), row(phase=Phase.DOWN, link=LinkClass.DOWNLINK),
        row(phase=Phase.SETUP), row(phase=Phase.EVALUATE),
    ]  # fmt: skip
    assert traffic(rows) == {
        LinkClass.UPLINK: (15, 3), LinkClass.DOWNLINK: (10, 1),
        LinkClass.D2D: (0, 0), LinkClass.BACKHAUL: (0, 0),
    }  # fmt: skip
    only = traffic(rows, [Phase.SETUP])
    assert only[LinkClass.UPLINK] == (10, 1)
    assert only[LinkClass.DOWNLINK] == (0, 0)
