"""Scenarios: what is read, what is refused, and what becomes of links."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from hffm_flower.testbed.link import Quality
from hffm_flower.testbed.scenario import Fault, links_at, load_scenarios
from hffm_flower.topology import Topology
from hffm_flower.tree import plant

TESTBED = Path(__file__).parents[3] / "deploy" / "testbed"
TREE = Topology(
    np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [9.0, 0.0]]), np.array([[0.0, 1.0], [9.0, 1.0]]),
    ((0, 1, 2), (3,)), ((0, 1), (1, 2)),
)  # fmt: skip


def write(folder: Path, text: str) -> Path:
    path = folder / "faults.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_of_scenarios(tmp_path: Path) -> None:
    text = (
        'calm = []\n[[bad-day]]\nwhat = "cut"\nwhere = "link/1"\nround = 2\nseconds = 20\n'
        '[[bad-day]]\nwhat = "slow"\nwhere = "device/3"\nmbit-s = 1\n'
    )
    found = load_scenarios(write(tmp_path, text), TREE, 4)
    assert found == {
        "calm": (),
        "bad-day": (
            Fault(what="cut", where="link/1", round=2, seconds=20),
            Fault(what="slow", where="device/3", mbit_s=1),
        ),
    }
    assert [f.told() for f in found["bad-day"]] == [
        "cut at link/1, round 2, 20 s", "slow to 1.0 Mbit/s at device/3, round 1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no scenario"),
        ("[[a]\n", "is not valid TOML"),
        ("[[a]]\nround = 1" + "0" * 5000, "is not valid TOML"),
        ("a = " + "[" * 9000, "is not valid TOML"),
        ('[a]\nwhat = "cut"\n', "'a' is no list; write [[a]] or a = []"),
        ('[[a]]\nwhat = "burn"\n', "a.0.what: 'burn'"),
        ('[[a]]\nwhat = "cut"\nwhen = 3\n', "a.0.when: 3: Extra inputs"),
        ('[[a]]\nwhat = "cut"\nround = 0\n', "a.0.round: 0"),
        ('[[a]]\nwhat = "cut"\nround = 5\n', "a.0: round = 5; the run has 4 edge rounds"),
        ('[[a]]\nwhat = "loss"\nshare = 1.5\n', "a.0.share: 1.5"),
        ('[[a]]\nwhat = "loss"\n', "a.0: what = 'loss' needs share"),
        ('[[a]]\nwhat = "slow"\nms = 3\n', "a.0: what = 'slow' needs mbit-s"),
        ('[[a]]\nwhat = "cut"\nms = 3\n', "a.0: what = 'cut' has no use for ms"),
        ('[[a]]\nwhat = "cut"\nwhere = "device/4"\n', "where = 'device/4' is no place in this"),
        ('[[a]]\nwhat = "delay"\nms = inf\n', "a.0.ms: inf"),
        ('[[a]]\nwhat = "delay"\nms = 60001\n', "a.0.ms: 60001"),
        ('[[a]]\nwhat = "cut"\nseconds = nan\n', "a.0.seconds: nan"),
        ('[[a]]\nwhat = "slow"\nmbit-s = 1e-300\n', "a.0.mbit-s: 1e-300"),
        ('[[a]]\nwhat = "cut"\njitter-ms = 3\n', "a.0: what = 'cut' has no use for jitter-ms"),
        (f"{'a' * 61} = []\n", "has 61 letters; allowed: up to 60"),
        ('[["a b"]]\nwhat = "cut"\n', "'a b' cannot name a folder"),
    ],
)
def test_files_that_cannot_work(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)):
        load_scenarios(write(tmp_path, text), TREE, 4)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the scenarios"):
        load_scenarios(tmp_path / "none.toml", TREE, 4)


def pairs(*ends: tuple[str, str]) -> set[tuple[str, str]]:
    return {each for a, b in ends for each in ((a, b), (b, a))}


@pytest.mark.parametrize(
    ("where", "links"),
    [
        ("link/1", pairs(("device/1", "device/2"))),
        ("device/0-device/1", pairs(("device/0", "device/1"))),
        ("edge/1-cloud", pairs(("edge/1", "cloud"))),
        ("cloud", pairs(("edge/0", "cloud"), ("edge/1", "cloud"))),
        ("cluster/1", pairs(("edge/1", "cloud"))),
        ("device/3", pairs(("device/3", "edge/1"))),
        ("device/1", pairs(("device/1", "edge/0"), ("device/0", "device/1"),
                           ("device/1", "device/2"))),
    ],
)  # fmt: skip
def test_places(where: str, links: set[tuple[str, str]]) -> None:
    assert links_at(where, TREE) == links


def test_everywhere() -> None:
    assert len(links_at("all", TREE)) == 2 * (2 + 4 + 3)


@pytest.mark.parametrize("where", ["", "link/2", "cluster/2", "device/0-device/2", "link/-1",
                                   "device/0-", "edge", "all-all", f"link/{9:05000}"])  # fmt: skip
def test_places_that_are_not_there(where: str) -> None:
    with pytest.raises(ConfigError, match="is no place in this tree of 2 edges, 4 devices and 2"):
        links_at(where, TREE)


def test_what_becomes_of_a_link() -> None:
    link = Quality(5e6, 0.1, loss=0.5)
    assert Fault(what="cut").applied(link) == Quality(5e6, 0.1, loss=0.5, cut=True)
    assert Fault(what="slow", mbit_s=1).applied(link).rate_bit_s == 1e6
    assert Fault(what="slow", mbit_s=9).applied(link).rate_bit_s == 5e6
    assert Fault(what="loss", share=0.5).applied(link).loss == pytest.approx(0.75)
    assert Fault(what="delay", ms=50).applied(link).delay_s == pytest.approx(0.15)
    jittery = Fault(what="delay", ms=50, jitter_ms=5).applied(link)
    assert jittery.jitter_s == pytest.approx(0.005)


def test_the_example() -> None:
    config = RunConfig.load(TESTBED / "topology.toml")
    found = load_scenarios(
        TESTBED / "faults.toml", plant(config).topology, config.rounds
    )  # fmt: skip
    assert "calm" in found
