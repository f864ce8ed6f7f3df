"""Training in segments, put down and taken up again: the same bits as in one go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients import client_app
from clients.examples import TaskData
from clients.resident import Device
from clients.store import DeviceStore
from clients.trainer import Progress, Trained, train
from hffm_flower.config import RunConfig
from hffm_flower.errors import ProtocolError
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.modules import ModularState, ModuleKey
from hffm_flower.records import (
    CONFIG,
    MODULES,
    masses,
    metrics,
    modules_of,
    modules_record,
    to_bytes,
)
from hffm_flower.sections import TrainConfig
from tests.support.fake_grid import FIRST_NODE, FakeGrid
from tests.support.tiny import examples, model_of

CONFIGS = {
    "one epoch": TrainConfig(local_epochs=1, batch_size=4, learning_rate=0.02),
    "three epochs": TrainConfig(local_epochs=3, batch_size=8, learning_rate=0.02),
    "proximal": TrainConfig(local_epochs=2, batch_size=4, learning_rate=0.02, proximal_mu=0.5),
    "steps": TrainConfig(local_steps=7, batch_size=4, learning_rate=0.02),
    "fewer steps than segments": TrainConfig(local_steps=1, batch_size=4, learning_rate=0.02),
}


def parts() -> list[TaskData]:
    return [
        examples("tiny-vqa", 11, ("image", "text")),
        examples("tiny-move", 5, ("sensor",)),
        examples("tiny-box", 6, ("image",)),
    ]


def model(tiny: RunConfig) -> MultimodalModel:
    return model_of(tiny, ["tiny-vqa", "tiny-box", "tiny-move"], ("image", "sensor", "text"))


def step(
    whole: MultimodalModel, data: Sequence[TaskData], config: TrainConfig, **more: Any
) -> Trained:
    return train(whole, data, config, t=2, rounds=3, seed=1, device_index=4, **more)


@pytest.mark.parametrize("segments", [2, 3])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_segments_are_the_round_to_the_last_bit(
    tiny: RunConfig, tmp_path: Path, config: TrainConfig, segments: int
) -> None:
    """Each segment begins in a new model, with what a file kept of the one before."""
    data = parts()
    whole = model(tiny)
    done = step(whole, data, config)
    store = DeviceStore(tmp_path, 4)
    state: ModularState = model(tiny).state()
    progress: Progress | None = None
    counted = []
    for segment in range(segments):
        torch.manual_seed(segment)  # nothing is drawn from torch's own stream
        fresh = model(tiny)
        fresh.load(state)
        part = step(fresh, data, config, segment=segment, segments=segments, progress=progress)
        store.save_segment(2, segment, part.progress.tensors(), fresh.state())
        tensors, state = store.read_segment(2, segment)
        progress = Progress.of(tensors)
        counted.append(part.examples)
    assert to_bytes(state) == to_bytes(whole.state())
    assert (part.mass, part.loss, part.examples, part.flops) == (
        done.mass, done.loss, done.examples, done.flops,
    )  # fmt: skip
    assert counted == sorted(counted)
    assert progress is not None
    assert progress.steps == done.progress.steps
    assert progress.moments.keys() == done.progress.moments.keys()
    assert all(torch.equal(v, done.progress.moments[n]) for n, v in progress.moments.items())
    assert bool(progress.origin) == bool(config.proximal_mu)


def test_mass_grows_with_the_segments(tiny: RunConfig) -> None:
    first = step(model(tiny), parts(), CONFIGS["one epoch"], segment=0, segments=3)
    done = step(model(tiny), parts(), CONFIGS["one epoch"])
    assert sum(first.mass.values()) < sum(done.mass.values())
    assert all(n <= done.mass[k] for k, n in first.mass.items())


def test_progress_is_as_it_was(tiny: RunConfig) -> None:
    part = step(model(tiny), parts(), CONFIGS["proximal"], segment=0, segments=2)
    again = Progress.of(part.progress.tensors())
    assert (again.steps, again.loss, again.examples, again.flops) == (
        part.progress.steps, part.loss, part.examples, part.flops,
    )  # fmt: skip
    for one, other in (
        (again.moments, part.progress.moments),
        (again.origin, part.progress.origin),
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(v, other[n]) for n, v in one.items())


def test_a_segment_that_is_not_there_is_told(tmp_path: Path) -> None:
    store = DeviceStore(tmp_path, 4)
    with pytest.raises(ProtocolError, match="segment 0 of edge round 3 is not on this device"):
        store.read_segment(3, 0)
    key = ModuleKey.parse("head/h")
    store.save_segment(3, 0, Progress(steps=2).tensors(), {key: {}})
    assert Progress.of(store.read_segment(3, 0)[0]).steps == 2
    with pytest.raises(ProtocolError, match="segment 1 of edge round 3"):
        store.read_segment(3, 1)
    (store.folder / "open" / "3-0-progress.safetensors").write_bytes(b"cut off")
    with pytest.raises(ProtocolError, match="segment 0 of edge round 3"):
        store.read_segment(3, 0)


def test_segments_are_no_versions_and_older_rounds_are_dropped(tmp_path: Path) -> None:
    store = DeviceStore(tmp_path, 4)
    for t, segment in ((1, 0), (1, 1), (2, 0)):
        store.save_segment(t, segment, Progress(steps=t).tensors(), {})
    assert store.versions() == []
    assert Progress.of(store.read_segment(2, 0)[0]).steps == 2
    with pytest.raises(ProtocolError):
        store.read_segment(1, 1)


class Asked:
    """Device 4 of a tiny run, asked through the ClientApp."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        grid = FakeGrid(client_app.app, config.tree.devices, config.to_flwr())
        self.context: Context = grid.contexts[FIRST_NODE + 4]

    def train(self, state: ModularState, **words: int) -> Message:
        content = RecordDict(
            {MODULES: modules_record(state), CONFIG: ConfigRecord({"t": 1, **words})}
        )
        message = Message(content, self.context.node_id, "train", ttl=60.0)
        message.metadata.__dict__["_message_id"] = "m"
        return client_app.app(message, self.context)


@pytest.fixture(params=[0.0, 0.3], ids=["plain", "proximal"])
def config(tiny: RunConfig, request: pytest.FixtureRequest) -> RunConfig:
    return tiny.with_values(train__proximal_mu=request.param, train__local_epochs=2)


@pytest.mark.parametrize("segments", [2, 3])
def test_a_device_trains_in_segments_as_in_one_go(config: RunConfig, segments: int) -> None:
    """Shared modules go and come back, its own head stays on the device."""
    initial = Device(config, 4, torch.device("cpu")).model().state()
    shared = {k: s for k, s in initial.items() if k.kind != "head"}
    whole = Asked(config).train(shared)
    own = DeviceStore(Path(config.paths.state) / "1", 4)
    heads = to_bytes(own.read(2))
    (own.folder / "1.safetensors").unlink()
    state = dict(shared)
    for segment in range(segments):
        assert own.versions() == []
        reply = Asked(config).train(state, segment=segment, segments=segments)
        state |= modules_of(reply.content)
    assert to_bytes(modules_of(reply.content)) == to_bytes(modules_of(whole.content))
    assert masses(reply.content) == masses(whole.content)
    assert metrics(reply.content, "metrics") == metrics(whole.content, "metrics")
    assert to_bytes(own.read(2)) == heads


def test_a_device_without_the_segment_before_says_so(config: RunConfig) -> None:
    initial = Device(config, 4, torch.device("cpu")).model().state()
    with pytest.raises(ProtocolError, match="segment 0 of edge round 1 is not on this device"):
        Asked(config).train(initial, segment=1, segments=2)
