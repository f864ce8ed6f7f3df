from __future__ import annotations

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from hffm_flower.topology import clusters


@given(st.integers(1, 300), st.data())
def test_clusters_part_the_devices_evenly(devices: int, data: st.DataObject) -> None:
    edges = data.draw(st.integers(1, devices))
    got = clusters(devices, edges)
    assert len(got) == edges
    assert list(chain(*got)) == list(range(devices))
    sizes = [len(c) for c in got]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


def test_examples() -> None:
    assert clusters(5, 2) == ((0, 1), (2, 3, 4))
    assert clusters(3, 1) == ((0, 1, 2),)
    assert clusters(3, 3) == ((0,), (1,), (2,))
