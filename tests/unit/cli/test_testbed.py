"""``hffm testbed`` refuses what cannot work before anything starts, and tells what came of runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hffm_flower.cli import main
from hffm_flower.cli.testbed import emulator_cost, messages_table, outcomes_table
from hffm_flower.errors import ConfigError
from hffm_flower.ledger import LinkClass
from hffm_flower.testbed import containers
from hffm_flower.testbed.control import Carried
from hffm_flower.testbed.link import Counters
from hffm_flower.testbed.measure import Timed
from hffm_flower.testbed.report import Outcome

TWO = '[[a]]\nwhat = "cut"\n[[b]]\nwhat = "cut"\n'


@pytest.fixture
def hffm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Any:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hffm_flower.testbed.namespaces.check_allowed", lambda: None)

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["hffm", "testbed", "--smoke", *words])
        with pytest.raises(SystemExit) as exit_:
            main()
        code = exit_.value.code
        return (code if isinstance(code, int) else 0), " ".join(capsys.readouterr().err.split())

    return run


def test_a_scenario_that_cannot_be(hffm: Any, tmp_path: Path) -> None:
    (tmp_path / "faults.toml").write_text('[[a]]\nwhat = "cut"\nwhere = "device/9"\n')
    code, said = hffm("--scenario", "faults.toml", "--out", "run")
    assert code == 2
    assert "faults.toml: a.0: where = 'device/9' is no place in this tree of 2 edges" in said
    assert not (tmp_path / "run").exists()


def test_a_method_without_a_federation(hffm: Any) -> None:
    code, said = hffm("--set", "method=central", "--set", "d2d.plan=none")
    assert code == 2
    assert "'central' pools all data and has nothing to deploy" in said


def test_where_namespaces_are_not_allowed(
    hffm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse() -> None:
        raise ConfigError("hffm testbed joins network namespaces by TUN devices; be root")

    monkeypatch.setattr("hffm_flower.testbed.namespaces.check_allowed", refuse)
    assert hffm("--out", "run") == (
        2, "error: hffm testbed joins network namespaces by TUN devices; be root"
    )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_containers_can_have_one_scenario(hffm: Any, tmp_path: Path) -> None:
    (tmp_path / "faults.toml").write_text(TWO)
    code, said = hffm("--scenario", "faults.toml", "--docker", "tree")
    assert (code, "--docker: faults.toml holds 2 scenarios" in said) == (2, True)


def test_a_project_that_is_not_up_takes_no_folder(
    hffm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("hffm_flower.testbed.containers.shutil.which", lambda name: name)
    monkeypatch.setattr(containers, "_docker", lambda *_: "")
    code, said = hffm("--docker", "tree", "--out", "run")
    assert (code, "--docker tree: no container at work for cloud" in said) == (2, True)
    assert not (tmp_path / "run").exists()


def test_a_long_place_for_temporary_files(hffm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hffm_flower.testbed.hosts.tempfile.gettempdir", lambda: "/" + 90 * "t")
    code, said = hffm("--out", "run")
    assert (code, "has 91 letters" in said) == (2, True)


def test_containers_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = (
        '[{"State": {"Pid": 7}, "Config": {"Env": ["HFFM_CACHE=/machine/cache", "A"], '
        '"Labels": {"com.docker.compose.service": "edge-0"}}, "NetworkSettings": {"Networks": '
        '{"backhaul": {"IPAddress": "172.20.0.3"}, "down": {"IPAddress": ""}}}}, '
        '{"State": {"Pid": 0}, "Config": {"Labels": {"com.docker.compose.service": "cloud"}}}]'
    )
    monkeypatch.setattr("hffm_flower.testbed.containers.shutil.which", lambda name: name)
    monkeypatch.setattr(containers, "_docker", lambda *w: "abc" if w[0] == "ps" else told)
    found = containers.find_containers("tree", ["edge/0"])
    assert found["edge/0"] == containers.Container(7, {"backhaul": "172.20.0.3"}, "/machine/cache")
    with pytest.raises(
        ConfigError, match="--docker tree: no container at work for cloud, device/0"
    ):
        containers.find_containers("tree", ["cloud", "edge/0", "device/0"])


def test_tables(tmp_path: Path) -> None:
    ends = "device/0", "device/1"
    messages = (
        Timed(1, *ends, LinkClass.D2D, 2_000_000, 2.0, 2.1),
        Timed(1, *ends, LinkClass.D2D, 2_000_000, 2.0, 9.0, 7.0),
        Timed(1, "edge/0", "device/1", LinkClass.DOWNLINK, 1_000_000, 1.0, 3.5, flower=True),
    )
    carried = Carried(2.0, 10, {ends: Counters(delivered_bytes=12_500_000)})
    good = Outcome("calm", tmp_path, "finished", "", 4, 0, 1, 0.5, 60.0, 40.0, messages, carried)
    console = Console(width=160)
    with console.capture() as said:
        console.print(messages_table(messages))
        console.print(outcomes_table([good, Outcome("bad", tmp_path, "failed", "no quorum")]))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.get().splitlines()]
    assert ["d2d", "2", "2000", "2.00", "5.55", "1.05", "-", "1"] in rows
    assert ["Flower downlink", "1", "1000", "1.00", "3.50", "-", "2.50", "-"] in rows
    assert ["calm", "finished", "4", "0", "1", "0.500", "60", "40"] in rows
    assert ["bad", "failed", "0", "0", "0", "-", "0", "0"] in rows
    assert emulator_cost(carried) == "emulator: 12 MB, 2.0 s CPU, 2.00 % of a core per Mbit/s"
