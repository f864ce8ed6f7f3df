"""docker-compose.yml, its knobs and its role files: confined, whole, and of one mind."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from hffm_flower.config import RunConfig
from hffm_flower.topology import clusters

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
FOLDER = ROOT / "deploy" / "compose"
TEXT = COMPOSE.read_text(encoding="utf-8")
FILE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
ENDING = {"certs", "submit"}
NODES = sorted(SERVICES.keys() - ENDING)
COMPOSES_OWN = {"COMPOSE_PROJECT_NAME", "COMPOSE_PROFILES"}


def knobs() -> dict[str, str]:
    lines = (ROOT / ".env").read_text(encoding="utf-8").splitlines()
    given = [line.split("=", 1) for line in lines if line and not line.startswith("#")]
    assert len({name for name, _ in given}) == len(given)
    return {name: value for name, value in given}


def role(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def machine(service: str) -> str:
    return service.removeprefix("gpu-")


def mounts(service: str) -> dict[str, str]:
    """Place in the container -> where it comes from."""
    pairs = [text.split(":") for text in SERVICES[service]["volumes"]]
    return {to: source for source, to, *_ in pairs}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["user"].partition(":")[0] not in ("", "0", "root")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert isinstance(service["pids_limit"], int), "docker-compose 1.29 takes no text here"
    assert service["mem_limit"]
    assert service["cpus"]
    assert service["logging"]["options"]["max-size"]
    assert not service.keys() & {"ports", "privileged", "cap_add", "devices", "pid", "ipc"}
    assert service.get("network_mode") in (None, "none", "service:cloud")
    written = [v for v in service["volumes"] if v.startswith(".") and not v.endswith(":ro")]
    assert written == []


@pytest.mark.parametrize("name", NODES)
def test_a_node_stays_up_and_tells_that_it_works(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["environment"]["HFFM_ALIVE"].startswith("/tmp/")
    assert "HFFM_ALIVE" in service["healthcheck"]["test"][1]
    assert service["depends_on"] == {"certs": {"condition": "service_completed_successfully"}}


@pytest.mark.parametrize("name", sorted(ENDING))
def test_what_ends_has_no_health(name: str) -> None:
    assert SERVICES[name]["healthcheck"] == {"disable": True}
    assert SERVICES[name]["restart"] == "no", "a run that failed is not trained again"


def test_networks_lead_nowhere_and_part_the_clusters() -> None:
    assert FILE["networks"].keys() == {"backhaul", "cluster-0", "cluster-1", "cluster-2"}
    assert all(network == {"internal": True} for network in FILE["networks"].values())
    for name in NODES:
        kind, _, index = machine(name).partition("-")
        joined = set(SERVICES[name]["networks"])
        if kind == "cloud":
            assert joined == {"backhaul"}
        elif kind == "edge":
            assert joined == {"backhaul", f"cluster-{index}"}
        else:
            assert joined == {f"cluster-{int(index) // 2}"}


def test_a_machine_sees_its_own_disk_only() -> None:
    handed = mounts("certs").items()
    disks = {to.rpartition("/")[2]: disk for to, disk in handed if "/machines/" in to}
    assert disks == {machine(name): machine(name) for name in NODES}
    for name in NODES:
        own = {v for v in mounts(name).values() if v in FILE["volumes"]}
        assert own - {"results"} == {machine(name)}
        assert ("results" in own) == (name == "cloud")
    made = (ROOT / "deploy" / "Dockerfile.server").read_text(encoding="utf-8")
    assert (
        set(re.findall(r"\bmachines/([\w-]+)", made.partition("RUN groupadd")[2])) == disks.keys()
    )
    assert FILE["volumes"].keys() == disks.keys() | {"authority", "results"}


def test_every_knob_turns_something() -> None:
    used = set(re.findall(r"(?<!\$)\$\{(\w+)\}", TEXT))
    assert used == knobs().keys() - COMPOSES_OWN
    assert not re.search(r"(?<!\$)\$(?!\$|\{\w+\})", TEXT), "every knob has braces, no default"


def test_the_common_subset() -> None:
    assert FILE.keys() - {key for key in FILE if key.startswith("x-")} == {
        "services", "networks", "volumes",
    }  # fmt: skip


@pytest.mark.parametrize(("profile", "devices", "edges"), [("", 4, 2), ("third-cluster", 6, 3),
                                                           ("gpu", 6, 3)])  # fmt: skip
def test_profiles_are_whole_trees(profile: str, devices: int, edges: int) -> None:
    up = {machine(n) for n in NODES if profile in SERVICES[n].get("profiles", [profile])}
    assert up == {"cloud", *(f"edge-{e}" for e in range(edges)),
                  *(f"device-{k}" for k in range(devices))}  # fmt: skip
    for edge, members in enumerate(clusters(devices, edges)):
        for device in members:
            assert role(f"device-{device}")["superlink"] == f"edge-{edge}:8000"
        names = " ".join(f"device-{d}" for d in members)
        assert f"hand_out edge-{edge} {names}\n" in (FOLDER / "certs.sh").read_text()


@pytest.mark.parametrize("name", NODES)
def test_a_node_and_its_role_have_one_name(name: str) -> None:
    kind, _, index = machine(name).partition("-")
    own, command = role(machine(name)), SERVICES[name]["command"]
    assert command == [kind, f"/roles/{machine(name)}.toml"]
    assert own["certificates"] == "/machine/certificates"
    assert own.get("index") == (int(index) if index else None)
    if kind == "edge":
        assert own["upstream"] == "cloud:8000"
        assert mounts(name)[own["config"]] == "${HFFM_SETTINGS}"
    if kind == "device":
        assert own["peer-address"] == f"{machine(name)}:8003"
        assert SERVICES[name].get("hostname", machine(name)) == machine(name)


def test_the_run_fits_the_tree() -> None:
    config = RunConfig.load(ROOT / knobs()["HFFM_SETTINGS"])
    assert (config.tree.devices, config.tree.edges, config.rounds) == (4, 2, 6)
    assert (config.model.backbone, config.model.weights) == ("small", "pretrained")
    assert config.d2d.plan == "relay"
    assert SERVICES["submit"]["command"][2] in mounts("submit")


def test_a_wheel_that_was_brought_along_is_not_committed() -> None:
    ignored = (ROOT / "deploy" / "wheels" / ".gitignore").read_text(encoding="utf-8")
    assert ignored.split() == ["*", "!.gitignore"]
