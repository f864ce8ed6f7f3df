"""What a device needs is compared with what its machine has, before it says what it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients import needs, shares
from clients.client_app import app
from clients.needs import check_room
from clients.resident import Device, own_data
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from hffm_flower.session.memory import estimates
from hffm_flower.session.preflight import check
from tests.support import fused, tiny
from tests.support.checkpoints import make_vilt
from tests.support.fake_grid import FIRST_NODE, FakeGrid
from tests.support.folders import picture, write_csv, write_device

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunConfig]:
    fused.register(monkeypatch)
    yield fused.settings(tmp_path, make_vilt(tmp_path / "vilt"), tree__devices=1)
    tiny.forget()


def has(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(needs, "memory_bytes", lambda _: most)


def test_a_device_without_room_refuses_before_it_loads_anything(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = estimates(config, check(config))
    has(monkeypatch, found.total)
    check_room(Device(config, 0, CPU))
    has(monkeypatch, found.total - 1)
    monkeypatch.setattr(Device, "model", lambda _: pytest.fail("it is loaded"))
    FakeGrid(app, 1, {})  # sets the identity that messages carry
    context = Context(
        run_id=1, node_id=FIRST_NODE, node_config={"partition-id": 0}, state=RecordDict(),
        run_config=dict(config.to_flwr()),
    )  # fmt: skip
    asked = Message(
        RecordDict({"config": ConfigRecord({"t": 0})}), FIRST_NODE, "query.profile", ttl=60.0
    )
    with pytest.raises(ConfigError, match=r"device 0 needs .* MiB for a training step and .* MiB"):
        app(asked, context)


def test_data_of_its_own_are_counted_as_they_are(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(**settings: object) -> None:
        raise AssertionError("a device with its own data needs no partition")

    monkeypatch.setattr(shares, "partition", drawn)
    shots = tmp_path / "shots"
    rows = [(picture(shots / f"{i}.png", i % 4), "color?", fused.COLOURS[i % 4]) for i in range(20)]
    write_csv(shots / "examples.csv", ("image", "text", "answer"), rows)
    file = write_device(tmp_path / "d.toml", {"swatch4": {"kind": "image-csv", "path": "shots"}})
    device = Device(config, 0, CPU, own_data(config, str(file), 1))
    sizes, _ = needs.data_bytes(device)
    for part, size in zip((device.train_data(), *device.tests().values()), sizes, strict=True):
        (data,) = part
        held = [data.targets, *(t for x in data.inputs.values() for t in (x.values, x.mask))]
        assert size == sum(tensor.nbytes for tensor in held)
    has(monkeypatch, sum(sizes))
    with pytest.raises(ConfigError, match=f"and {sum(sizes) / 2**20:.4g} MiB for its examples"):
        check_room(device)


def test_what_is_packaged_is_not_asked(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 0)
    check_room(Device(tiny, 0, CPU))
