"""Role files: what they allow, and the commands that they become."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from hffm_flower.pki import Party, Role, supernode_pair
from hffm_flower.pki_folder import create
from hffm_flower.session.local_roles import Kind, local_roles
from hffm_flower.session.role import Role as AnyRole
from hffm_flower.session.roles import CloudRole, DeviceRole, EdgeRole
from hffm_flower.session.serving import commands

EXAMPLES = Path(__file__).parents[3] / "deploy" / "roles"
KINDS: dict[str, type[AnyRole]] = {
    "cloud": CloudRole, "edge-0": EdgeRole, "device-0": DeviceRole,
}  # fmt: skip
EDGE = {"index": 1, "upstream": "10.0.0.1:8000", "insecure": True}
DEVICE = {"index": 2, "superlink": "10.0.0.2:8000", "insecure": True}


@pytest.fixture
def placed(tmp_path: Path) -> Path:
    """The examples, with the certificates that they name."""
    parties = [Party("cloud", Role.SERVER), Party("edge-0", Role.EDGE),
               Party("device-0", Role.DEVICE), Party("device-1", Role.DEVICE)]  # fmt: skip
    create(tmp_path / "pki", parties)
    (tmp_path / "state").mkdir()
    roles = tmp_path / "deploy" / "roles"
    roles.mkdir(parents=True)
    (tmp_path / "deploy" / "runs").mkdir()
    (tmp_path / "deploy" / "runs" / "smoke.toml").write_text("rounds = 4\n")
    for name in KINDS:
        (roles / f"{name}.toml").write_text((EXAMPLES / f"{name}.toml").read_text())
    return roles


def test_the_folder_holds_the_known_roles() -> None:
    assert {p.stem for p in EXAMPLES.glob("*.toml")} == set(KINDS)


def test_cloud_as_flowers_commands(placed: Path) -> None:
    role = CloudRole.load(placed / "cloud.toml")
    superlink, register = list(commands(role))
    words = shlex.split(superlink)
    own = placed.parents[1] / "pki" / "cloud"
    assert words[0] == "flower-superlink"
    assert words[words.index("--host") + 1 : words.index("--host") + 4] == [
        "127.0.0.1", "--port", "8001",
    ]  # fmt: skip
    assert "--enable-supernode-auth" in words
    assert "--insecure" not in words
    assert Path(words[words.index("--ssl-keyfile") + 1]).resolve() == own / "key.pem"
    assert re.fullmatch(r"flwr supernode register \S*/edge-0/supernode.pub here", register)


def test_edge_as_flowers_commands(placed: Path) -> None:
    role = EdgeRole.load(placed / "edge-0.toml")
    superlink, *registers, node, run = list(commands(role, RunConfig.load(role.config)))
    assert superlink.startswith("flower-superlink --ssl-certfile ")
    assert len(registers) == 2
    words = shlex.split(node)
    assert words[:3] == ["flower-supernode", "--superlink", "10.0.0.1:8000"]
    config = words[words.index("--node-config") + 1]
    assert 'partition-id=0 gateway="127.0.0.1:8002" certificates="' in config
    words = shlex.split(run)
    assert words[:5] == ["flwr", "run", ".", "here", "--run-config"]
    assert 'rounds=4 deploy.tier="edge" deploy.edge=0' in words[5]


def test_device_of_both_kinds(placed: Path) -> None:
    role = DeviceRole.load(placed / "device-0.toml")
    (command,) = commands(role)
    assert 'partition-id=0 peer-address="10.0.0.40:8003" certificates=' in command
    long_lived = role.node("device").argv
    assert "node" in long_lived
    assert long_lived[long_lived.index("--app") + 1] == "clients.client_app:app"
    stock = role.model_copy(update={"stock_node": "127.0.0.1:9100"}).node("device").argv
    assert stock[-4:] == ("--host", "127.0.0.1", "--port", "9100")


def test_edges_node_is_the_proxy(tmp_path: Path) -> None:
    argv = EdgeRole.made(EDGE, tmp_path).node("edge").argv
    assert argv[argv.index("--app") + 1] == "clients.edge_proxy:app"
    assert argv[-1] == 'partition-id=1 gateway="127.0.0.1:8002" insecure=true'


@pytest.mark.parametrize(("kind", "table", "message"), [
    (CloudRole, {}, "certificates: name this machine's folder"),
    (CloudRole, {"insecure": True, "certificates": "x"}, "goes with no certificates"),
    (CloudRole, {"certificates": "nowhere"}, "holds no ca.pem"),
    (CloudRole, {"insecure": True, "superlink": "0.0.0.0:8001"}, "is not on loopback"),
    (CloudRole, {"insecure": True, "superlink": "10.0.0.1:8001"}, "is not on loopback"),
    (CloudRole, {"insecure": True, "listen": "8000"}, "is not of the form HOST:PORT"),
    (CloudRole, {"insecure": True, "listen": "h:70000"}, "is not of the form HOST:PORT"),
    (CloudRole, {"insecure": True, "lisen": "h:1"}, "unknown setting of a cloud; allowed: "),
    (CloudRole, {"insecure": True, "superlink": "127.0.0.2:8001"},
     "is not on loopback, where it must be: it takes orders from everyone who reaches it; allowed "
     "hosts: 127.0.0.1, localhost, [::1]"),
    (CloudRole, {"insecure": True, "superlink": ""}, "superlink: '' is not of the form HOST:PORT"),
    (CloudRole, {"insecure": True, "listen": ""}, "listen: '' is not of the form HOST:PORT"),
    (CloudRole, {"insecure": True, "listen": 8000}, "listen: 8000 is not allowed: Input should be"),
    (CloudRole, {"insecure": True, "listen": "127.0.0.1:8001"},
     "listen: '127.0.0.1:8001' is taken by superlink ('127.0.0.1:8001'); give each an address of"),
    (CloudRole, {"insecure": True, "listen": "0.0.0.0:8001"}, "is taken by superlink"),
    (CloudRole, {"insecure": True, "listen": "[::]:8001"}, "is taken by superlink"),
    (CloudRole, {"insecure": True, "listen": "localhost:8001"}, "is taken by superlink"),
    (CloudRole, {"insecure": True, "database": "none/cloud.db"}, "is not a file in a folder that"),
    (CloudRole, {"insecure": True, "database": "."}, "database: "),
    (EdgeRole, {**EDGE, "gateway": "0.0.0.0:1"}, "is not on loopback"),
    (EdgeRole, {**EDGE, "gateway": ""}, "gateway: '' is not of the form HOST:PORT"),
    (EdgeRole, {**EDGE, "gateway": "127.0.0.1:8001"}, "superlink: '127.0.0.1:8001' is taken by"),
    (EdgeRole, {**EDGE, "gateway": "127.0.0.1:8000"}, "is taken by gateway"),
    (EdgeRole, {**EDGE, "stock-node": "0.0.0.0:9094"}, "stock-node: '0.0.0.0:9094' is not on"),
    (EdgeRole, {**EDGE, "stock-node": "127.0.0.1:8002"}, "is taken by stock-node"),
    (EdgeRole, {**EDGE, "upstream": ""}, "upstream: '' is not of the form HOST:PORT"),
    (EdgeRole, {**EDGE, "upstream": "127.0.0.1:8000"},
     "upstream: '127.0.0.1:8000' is this machine's own listen ('0.0.0.0:8000')"),
    (EdgeRole, {**EDGE, "listen": "10.0.0.1:8000"}, "is this machine's own listen"),
    (EdgeRole, {**EDGE, "index": True}, "index: True is not allowed: Input should be a valid int"),
    (EdgeRole, {**EDGE, "index": 2**31}, "index: 2147483648 is not allowed: Input should be less"),
    (DeviceRole, {**DEVICE, "index": True}, "index: True is not allowed"),
    (DeviceRole, {**DEVICE, "index": "3"}, "index: '3' is not allowed"),
    (DeviceRole, {**DEVICE, "index": 2**31}, "index: 2147483648 is not allowed"),
    (DeviceRole, {**DEVICE, "superlink": ""}, "superlink: '' is not of the form HOST:PORT"),
    (DeviceRole, {**DEVICE, "stock-node": "0.0.0.0:9094"}, "is not on loopback"),
    (DeviceRole, {**DEVICE, "stock-node": "[::1]:9", "peer-address": "[::]:9"},
     "peer-address: '[::]:9' is taken by stock-node"),
    (DeviceRole, {**DEVICE, "peer-address": "10.0.0.2:8000"}, "is this machine's own peer-address"),
    (DeviceRole, {**DEVICE, "own-data": "none.toml"}, "own-data: there is no file "),
    (DeviceRole, {**DEVICE, "data": {"watch7": {"kind": "series-csv"}}},
     "data: nothing reads [data.watch7] unless own-data names its file, which may be this one"),
    (EdgeRole, {"insecure": True, "upstream": "h:1"}, "index: Field required"),
    (EdgeRole, {**EDGE, "index": -1}, "index: "),
    (DeviceRole, {**DEVICE, "superlink": "http://h:1"}, "is not of the form HOST:PORT"),
    (DeviceRole, {**DEVICE, "stock-node": "nine"}, "is not of the form HOST:PORT"),
])  # fmt: skip
def test_a_bad_role_is_refused_with_what_is_allowed(
    kind: type[AnyRole], table: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        kind.made(table, tmp_path)


@pytest.mark.parametrize(("kind", "table"), [
    (CloudRole, {"insecure": True, "listen": "10.0.0.1:8001"}),
    (CloudRole, {"insecure": True, "superlink": "[::1]:8000"}),
    (CloudRole, {"insecure": True, "superlink": "localhost:8001", "database": "cloud.db"}),
    (EdgeRole, {**EDGE, "index": 2**31 - 1, "stock-node": "127.0.0.1:9094"}),
    (EdgeRole, {**EDGE, "listen": "0.0.0.0:8000", "upstream": "10.0.0.1:8000"}),
    (DeviceRole, {**DEVICE, "stock-node": "", "peer-address": ""}),
    (DeviceRole, {**DEVICE, "own-data": "own.toml", "data": {"watch7": {}}}),
])  # fmt: skip
def test_what_can_work_is_taken(
    kind: type[AnyRole], table: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "own.toml").touch()
    kind.made(table, tmp_path)


def test_a_file_that_is_no_role(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("listen = ")
    with pytest.raises(ConfigError, match=r"bad.toml is not valid TOML"):
        CloudRole.load(tmp_path / "bad.toml")
    with pytest.raises(ConfigError, match="cannot read the role"):
        CloudRole.load(tmp_path / "none.toml")


def test_keys_that_are_not_there(tmp_path: Path) -> None:
    for nodes in ("keys/*.pub", "~/none-such.pub", "~none-such/a.pub", ["", "x"]):
        with pytest.raises(ConfigError, match="nodes: "):
            CloudRole.made({"insecure": True, "nodes": nodes}, tmp_path)


@pytest.mark.parametrize("name", ["[x]", "a*", "b?", "c d"])
def test_a_folder_of_any_name_holds_keys(name: str, tmp_path: Path) -> None:
    public = supernode_pair("a")[1]
    for folder in (tmp_path / name, tmp_path / "ax", tmp_path / name / "[1]"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.pub").write_bytes(public)
    role = CloudRole.made(
        {"insecure": True, "nodes": ["*.pub", "[1]/a.pub", str(tmp_path / "a[x]" / "*.pub")]},
        tmp_path / name,
    )
    assert role.public_keys() == [
        tmp_path / name / "a.pub", tmp_path / name / "[1]" / "a.pub", tmp_path / "ax" / "a.pub",
    ]  # fmt: skip


def test_a_tree_on_one_machine_in_a_folder_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "[x]*"
    folder.mkdir()
    roles = local_roles(2, [[0, 1]], folder, Kind(stock=True), peers=True)
    assert roles.cloud.public_keys() == [folder / "pki" / "edge-0" / "supernode.pub"]
    assert len(roles.edges[0].public_keys()) == 2


def test_keys_that_flower_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "a.pub").write_text("ssh-nonsense AAAA\n")
    with pytest.raises(ConfigError, match=r"nodes: '\S*/a.pub' is no OpenSSH public key: "):
        CloudRole.made({"insecure": True, "nodes": "a.pub"}, tmp_path)
    with pytest.raises(ConfigError, match=r"nodes: there is no file '\*\.key'"):
        CloudRole.made({"insecure": True, "nodes": "*.key"}, tmp_path)
