"""What a process keeps between messages, and what it may rely on finding on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clients import shares
from clients.resident import Device, all_profiles, encoder_of, frozen_layers, label_counts
from clients.shares import shared_partition
from clients.spec import model_spec
from hffm_flower.config import RunConfig
from hffm_flower.data.partition import Partition
from hffm_flower.errors import ConfigError
from hffm_flower.models.parts import module_keys
from hffm_flower.modules import digest
from tests.support.tiny import TinyFusion, forget, spec_of
from tests.support.tiny_encoders import TinyImage

CPU = torch.device("cpu")


def file_of(config: RunConfig) -> Path:
    (path,) = (config.cache_dir() / "partitions").glob("*.npz")
    return path


def same(a: Partition, b: Partition) -> bool:
    return a.profiles == b.profiles and all(
        np.array_equal(x, y) for t in a.train for x, y in zip(a.train[t], b.train[t], strict=True)
    )


@pytest.mark.parametrize("index", [-1, 6, 1000])
def test_a_device_that_the_run_does_not_have_is_told(tiny: RunConfig, index: int) -> None:
    with pytest.raises(ConfigError, match=rf"device index {index} is not in 0\.\.5"):
        Device(tiny, index, CPU)


def test_a_device_is_its_profile(tiny: RunConfig) -> None:
    for profile in all_profiles(tiny):
        device = Device(tiny, profile.index, CPU)
        assert device.profile == profile
        assert device.model().keys == module_keys(profile.tasks, profile.modalities, spec_of(tiny))
        assert {p.task: len(p) for p in device.train_data()} == dict(profile.tasks)
        assert {p.task: len(p) for p in device.test_data("iid")} == dict(profile.tests)
        assert all(p.modalities <= set(profile.modalities) for p in device.train_data())
    assert Device(tiny, 0, CPU).profile.idle


def test_a_partition_is_drawn_once_and_read_by_other_processes(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shared_partition(tiny)
    written = file_of(tiny).read_bytes()
    forget()  # as if another process

    def drawn(**settings: object) -> Partition:
        raise AssertionError("drawn again")

    monkeypatch.setattr(shares, "partition", drawn)
    assert same(shared_partition(tiny), first)
    assert file_of(tiny).read_bytes() == written
    # Settings that do not touch the data share the file, others do not.
    shared_partition(tiny.with_values(rounds=9, method="star", train__batch_size=1))
    for change in ({"seed": 4}, {"data__alpha": 0.1}, {"tree__devices": 5}):
        with pytest.raises(AssertionError, match="drawn again"):
            shared_partition(tiny.with_values(**change))


@pytest.mark.parametrize("keep", [0, 17, 0.5], ids=["empty", "start", "half"])
def test_a_damaged_partition_is_drawn_again(tiny: RunConfig, keep: float) -> None:
    first = shared_partition(tiny)
    path = file_of(tiny)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep > 1 else keep * len(whole))])
    forget()
    assert same(shared_partition(tiny), first)
    forget()
    assert same(shared_partition(tiny), first)
    assert len(path.read_bytes()) == len(whole)


def test_frozen_weights_are_loaded_once_per_process(tiny: RunConfig) -> None:
    models = [Device(tiny, k, CPU).model() for k in range(6)]
    assert len(TinyFusion.loaded) == 1
    assert all(m.frozen is models[0].frozen for m in models)
    for k in range(6):
        Device(tiny, k, CPU).train_data()
    assert len(TinyImage.made) == 1
    assert frozen_layers(tiny, CPU) is models[0].frozen
    assert encoder_of(tiny, "image", CPU) is encoder_of(tiny.with_values(seed=8), "image", CPU)


def test_only_random_weights_follow_the_seed(tiny: RunConfig) -> None:
    def weight(config: RunConfig) -> torch.Tensor:
        return next(iter(frozen_layers(config, CPU).parameters()))

    drawn = tiny.with_values(model__weights="random")
    assert weight(tiny) is weight(tiny.with_values(seed=8))
    assert not torch.equal(weight(drawn), weight(drawn.with_values(seed=8)))
    assert TinyFusion.loaded == [("pretrained", 0), ("random", 3), ("random", 8)]


def test_models_of_a_process_share_no_trained_part(tiny: RunConfig) -> None:
    one, other = Device(tiny, 1, CPU).model(), Device(tiny, 1, CPU).model()
    before = {k: digest(s) for k, s in other.state().items()}
    one.load({k: {n: a + 1 for n, a in s.items()} for k, s in one.state().items()})
    assert {k: digest(s) for k, s in other.state().items()} == before


def test_unknown_parts_are_told(tiny: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"unknown backbone 'tinny' .did you mean 'tiny'"):
        model_spec(tiny.with_values(model__backbone="tinny"))


def test_label_counts_are_the_shards(tiny: RunConfig) -> None:
    counts = label_counts(tiny, "tiny-vqa")
    assert counts.shape == (6, 4)
    assert counts.sum(0).tolist() == [16, 16, 16, 16]
    assert counts.sum(1).tolist() == [p.tasks.get("tiny-vqa", 0) for p in all_profiles(tiny)]
