"""The committed stubs are what `exchange.proto` gives, and its words are the code's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hffm_flower.rpc import exchange_pb2 as pb
from hffm_flower.rpc.codec import Verdict

ROOT = Path(__file__).parents[3]
PROTO = "hffm_flower/rpc/exchange.proto"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stubs")
    kinds = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", *kinds, str(ROOT / PROTO)]
    subprocess.run(command, check=True, cwd=ROOT)
    return out / "hffm_flower" / "rpc"


@pytest.mark.parametrize("name", ["exchange_pb2.py", "exchange_pb2.pyi", "exchange_pb2_grpc.py"])
def test_stubs_are_fresh(generated: Path, name: str) -> None:
    assert (ROOT / PROTO).with_name(name).read_bytes() == (generated / name).read_bytes()


def test_verdicts_are_those_of_the_protocol() -> None:
    assert {v.name: v.value for v in Verdict} == dict(pb.Verdict.items())
