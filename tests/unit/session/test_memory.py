"""What a run takes, said before it runs: against real tensors, real modules and refusals."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
import psutil
import pytest
import torch
import transformers
from typer.testing import CliRunner

from clients import needs
from clients.evaluator import tally
from clients.examples import MOST_KEPT, TaskData
from clients.resident import Device
from clients.shares import shared_partition
from hffm_flower.cli import memory as command
from hffm_flower.cli.app import app
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError, HffmError
from hffm_flower.models import footprint
from hffm_flower.models.encoders import encoder_type
from hffm_flower.models.footprint import Living
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.runfiles import RunFiles
from hffm_flower.session import central, memory, preflight
from hffm_flower.session.memory import Machine, estimates
from hffm_flower.session.preflight import check
from hffm_flower.tasks import PACKAGED
from tests.support import fused, tiny
from tests.support.checkpoints import WIDTH, make_vilt, make_vit
from tests.support.fused_checkpoints import FUSED

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vilt(tmp_path_factory.mktemp("vilt") / "vilt")


@pytest.fixture(autouse=True)
def swatches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fused.register(monkeypatch)
    yield
    tiny.forget()


def said(config: RunConfig) -> memory.Estimate:
    (found,) = estimates(config, check(config, fits=False))
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__adapter": "lora"},
        {"model__adapter": "experts", "model__experts": 2},
        {"train__checkpointing": True},
        {"model__adapter_layers": 1},
    ],
    ids=["bottleneck", "lora", "experts", "recomputed", "last"],
)
def test_the_played_step_lives_as_the_real_one(
    changes: dict[str, object], vilt: Path, tmp_path: Path
) -> None:
    config = fused.settings(tmp_path, vilt, **changes)
    step = said(config).step
    device = Device(config, 0, CPU)
    model = device.model()
    model.recompute = config.train.checkpointing
    (part,) = device.train_data()
    rows = torch.arange(config.train.batch_size)
    with Living(model.parameters()) as living:
        batch = part.index(rows)
        output = model(part.task, batch.inputs)
        loss = model.head(part.task).loss(output.float(), batch.targets)
        del output
        torch.autograd.backward(loss)
    assert step.activations + step.gradients == pytest.approx(living.peak, rel=0.05)
    trained = sum(p.nbytes for p in model.parameters_of(model.keys).values())
    assert step.gradients == trained
    assert step.moments == 2 * trained
    assert step.frozen == sum(p.nbytes for p in model.frozen.parameters())
    assert step.total > step.activations > 0


def test_views_of_weights_are_not_counted() -> None:
    weight, x = torch.randn(64, 64), torch.randn(2, 64)
    with Living([weight, x]) as living:
        out = x @ weight.T
    assert living.now == living.peak == out.nbytes
    del out
    assert living.now == 0


def test_what_makes_a_step_smaller(vilt: Path, tmp_path: Path) -> None:
    whole = said(fused.settings(tmp_path, vilt)).step
    for changes in (
        {"train__checkpointing": True}, {"model__adapter_layers": 1}, {"train__batch_size": 4},
    ):  # fmt: skip
        less = said(fused.settings(tmp_path, vilt, **changes)).step
        assert less.activations < 0.8 * whole.activations, changes
    assert said(fused.settings(tmp_path, vilt, model__backbone_precision="bf16")).step.frozen < (
        0.55 * whole.frozen
    )
    assert said(fused.settings(tmp_path, vilt, model__adapter_layers=1)).step.flops < whole.flops


def test_attention_is_among_the_operations(
    vilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fused.settings(tmp_path, vilt, model__adapter_layers=1)
    whole = said(config).step.flops
    monkeypatch.setattr(footprint, "sdpa_kernel", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(needs, "_found", {})
    (part,) = Device(config, 0, CPU).train_data()
    tokens = sum(t.values.shape[1] for t in part.inputs.values())  # [CLS] alone looks at them
    assert whole - said(config).step.flops == 4 * tokens * WIDTH


def test_messages_rounds_and_caches(vilt: Path, tmp_path: Path) -> None:
    config = fused.settings(tmp_path, vilt, model__adapter_layers=1)
    (found,) = estimates(config, plan := check(config, fits=False))
    state = Device(config, 0, CPU).model().state()
    assert found.message == sum(a.nbytes for s in state.values() for a in s.values())
    most = max(sum(p.tasks.values()) for p in plan.profiles)
    assert found.flops == pytest.approx(found.step.flops * most * config.train.local_epochs)
    assert found.seconds == pytest.approx(found.flops / (config.radio.device_gflop_s * 1e9))
    assert found.devices == (0, 1)
    # What is cached is what a device leaves on disk: states behind the frozen layers.
    on_disk = []
    for k in found.devices:
        own = config.with_values(paths__cache=str(tmp_path / f"cache-{k}"))
        parts(Device(own, k, CPU))
        files = list((tmp_path / f"cache-{k}" / "features").glob("*/*/*"))
        on_disk.append(sum(f.stat().st_size - 18 for f in files))
    assert max(on_disk) == pytest.approx(found.cache, rel=0.01)
    assert said(fused.settings(tmp_path, vilt)).cache == 0


def parts(device: Device) -> list[TaskData]:
    return [*device.train_data(), *(part for test in device.tests().values() for part in test)]


def tensors(part: TaskData) -> list[torch.Tensor]:
    tokens = part.inputs.values()
    return [part.targets, *(t.values for t in tokens), *(t.mask for t in tokens)]


def nbytes(data: Iterable[TaskData]) -> int:
    """Of all their tensors, each once."""
    held = [tensor for part in data for tensor in tensors(part)]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in held}.values())


def test_what_devices_hold_and_what_a_process_keeps_of_them(vilt: Path, tmp_path: Path) -> None:
    config = fused.settings(tmp_path, vilt, tree__devices=3, data__alpha=0.5)
    found = said(config)
    sizes = [nbytes(parts(Device(config, k, CPU))) for k in found.devices]
    assert found.tokens == max(sizes)
    assert found.every == sum(sizes)
    here = Machine(memory=0, process=1000, actors=2)
    assert here.kept([found]) == sum(sizes) - max(sizes) > 0
    assert here.needed([found]) == 2 * (1000 + found.step.total + sum(sizes))
    many = dataclasses.replace(found, every=2**40)
    assert here.kept([many, found]) == MOST_KEPT


class FarEnough(HffmError):
    pass


def test_pooled_data_are_counted_as_they_are_held(
    vilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = fused.settings(tmp_path, vilt, tree__devices=3, data__train_per_answer=24)
    config = base.with_values(method="central")
    seen: list[tuple[MultimodalModel, int, int]] = []

    def stop(model: MultimodalModel, data: list[TaskData], *_: object, **__: object) -> None:
        gc.collect()
        held = [o for o in gc.get_objects() if type(o) is TaskData and id(o) not in before]
        seen.append((model, nbytes(data), nbytes(held)))
        raise FarEnough

    found = said(config)
    gc.collect()
    before = {id(o) for o in gc.get_objects() if type(o) is TaskData}
    monkeypatch.setattr(central, "train", stop)
    files = RunFiles.create(tmp_path / "out")
    with pytest.raises(FarEnough):
        central.train_pooled(config, files, event=lambda _: None, stop=threading.Event())
    ((model, train, held),) = seen
    every = said(base).every
    assert held == every  # nothing twice
    assert max(2 * train, every) <= found.tokens <= 2 * every  # while they are put together
    assert Machine(0, 0, 1).kept([found]) == 0
    assert found.devices == (0, 1, 2)
    assert found.step.gradients == sum(p.nbytes for p in model.parameters_of(model.keys).values())
    rounds = sum(sum(p.tasks.values()) for p in check(config).profiles) * config.train.local_epochs
    assert found.flops == pytest.approx(found.step.flops * rounds)
    assert found.message == 0


@pytest.mark.parametrize("changes", [{"train__checkpointing": True}, {"model__adapter_layers": 1}])
def test_evaluation_takes_no_more_than_training(
    changes: dict[str, object], vilt: Path, tmp_path: Path
) -> None:
    config = fused.settings(tmp_path, vilt, data__test_per_answer=64, **changes)
    device, step = Device(config, 0, CPU), said(config).step
    model, train, tests = device.model(), device.train_data(), device.tests()
    others = [*model.parameters(), *(t for p in parts(device) for t in tensors(p))]
    with Living(others) as living:
        list(tally(model, train, tests, batch_size=config.train.batch_size))
    assert 0 < living.peak < step.gradients + step.activations


def test_encoders_of_checkpoints_are_counted_in_front_of_any_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = make_vit(tmp_path / "vit")
    config = fused.settings(tmp_path, vit, data__tasks="swatch4-free").with_values(
        model__backbone="small", model__encoders=f"image=hf:{vit} text=minilm"
    )
    plan = check(config)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: SimpleNamespace(rss=1000))
    network = transformers.ViTModel.from_pretrained(vit, add_pooling_layer=False)
    assert memory.machine(config).process - 1000 == sum(p.nbytes for p in network.parameters())
    needed = memory.machine(config).needed(estimates(config, plan))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=needed))
    check(config)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=needed - 1))
    with pytest.raises(ConfigError, match="2 processes"):
        check(config)


def test_kinds_of_devices_are_told_apart(tiny: RunConfig) -> None:
    found = estimates(tiny, plan := check(tiny))
    busy = [p for p in plan.profiles if not p.idle]
    assert sorted(k for e in found for k in e.devices) == [p.index for p in busy]
    assert len({(e.modalities, e.tasks) for e in found}) == len(found) > 1
    for each in found:
        for index in each.devices:
            assert tuple(plan.profiles[index].tasks) == each.tasks


def test_a_model_that_does_not_fit_the_machine_is_refused(
    vilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fused.settings(tmp_path, vilt)
    monkeypatch.setattr(memory, "machine", lambda _: Machine(2**20, 2**19, 2))
    with pytest.raises(
        ConfigError, match=r"2 processes .* GiB, this machine has .*; 2 of 2 devices do not fit"
    ):
        check(config)
    check(config, fits=False)
    packaged = tiny_backbone(config)
    plan = check(packaged)  # packaged backbones are not asked when a run starts
    with pytest.raises(ConfigError, match="2 processes"):
        memory.check_machine(memory.machine(packaged), estimates(packaged, plan))


def tiny_backbone(config: RunConfig) -> RunConfig:
    return config.with_values(model__backbone="small", model__encoders="image=lite0 text=minilm")


def test_adapters_that_do_not_fit_the_devices_are_refused(vilt: Path, tmp_path: Path) -> None:
    config = fused.settings(tmp_path, vilt, tree__memory_mib="0.001 5")
    with pytest.raises(ConfigError, match=r"takes .* MiB; 1 of 2 devices have less, .* 0\.001 MiB"):
        check(config)
    check(config.with_values(tree__memory_mib="5"))


def test_the_command_shows_it_and_ends_badly_where_it_does_not_fit(
    vilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fused.settings(tmp_path, vilt)
    file = tmp_path / "run.toml"
    file.write_text("\n".join(f"{k} = {_toml(v)}" for k, v in config.to_flwr().items()))
    shown = CliRunner().invoke(app, ["plan-memory", str(file)])
    assert shown.exit_code == 0, shown.output
    assert "kind 1: image text; swatch4" in shown.output
    assert "it fits" in shown.output
    monkeypatch.setattr(memory, "machine", lambda _: Machine(2**20, 2**19, 2))
    refused = CliRunner().invoke(app, ["plan-memory", str(file)])
    assert isinstance(refused.exception, ConfigError)
    assert "AdamW" in refused.output


EVERY = " ".join(PACKAGED)
SMALL: Mapping[str, object] = {
    "tree__devices": 4, "tree__edges": 2, "data__tasks": EVERY, "data__full_modality_share": 1.0,
    "data__min_tasks": 1, "data__max_tasks": 8, "data__train_per_answer": 4,
    "data__test_per_answer": 2, "model__backbone": "small", "train__device": "cpu",
}  # fmt: skip


def test_every_packaged_task_has_an_estimate(tmp_path: Path) -> None:
    base = RunConfig().with_values(**SMALL, paths__cache=str(tmp_path / "cache"))
    found = estimates(base, check(base))
    assert {task for each in found for task in each.tasks} == set(EVERY.split())
    assert all(each.step.total > 0 for each in found)


def test_a_retrieval_task_has_an_estimate_on_a_checkpoint(tmp_path: Path) -> None:
    backbone = FUSED["gpt2"](tmp_path / "gpt2")
    base = RunConfig().with_values(**SMALL, paths__cache=str(tmp_path / "cache"))
    config = base.with_values(
        data__tasks="emoji-retrieval", model__backbone=f"hf:{backbone}",
        model__encoders=f"image=lite0 text=hf:{backbone}",
    )  # fmt: skip
    (found,) = estimates(config, check(config))
    shape = encoder_type("image", "lite0").streams["image"]
    read, target = shape.tokens * (4 * shape.width + 1), 4 * WIDTH
    drawn = shared_partition(config)
    of = [each["emoji-retrieval"] for each in (drawn.train, drawn.test_iid, drawn.test_skewed)]
    assert found.tokens == max(  # training knows the right text alone, a test has 20
        len(train) * (read + target) + (len(iid) + len(skewed)) * (read + 20 * target)
        for train, iid, skewed in zip(*of, strict=True)
    )
    assert found.step.total > 0


def test_a_batch_is_no_larger_than_the_devices_examples(vilt: Path, tmp_path: Path) -> None:
    config = fused.settings(tmp_path, vilt)
    check(config)
    drawn = shared_partition(config)  # a test may have more than training
    most = max(
        len(rows) for each in (drawn.train, drawn.test_iid, drawn.test_skewed)
        for rows in each["swatch4"]
    )  # fmt: skip
    exact = said(config.with_values(train__batch_size=most))
    assert said(config.with_values(train__batch_size=10 * most)).step == exact.step


def test_the_command_has_the_options_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[RunConfig] = []

    def stop(config: RunConfig, **_: object) -> NoReturn:
        asked.append(config)
        raise ConfigError("far enough")

    monkeypatch.setattr(preflight, "check", stop)
    words = "--preset small --encoders random --method star"
    CliRunner().invoke(app, ["plan-memory", *words.split()])
    (config,) = asked
    assert (config.model.backbone, config.model.weights, config.method) == (
        "small", "random", "star",
    )  # fmt: skip


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def test_tables_have_a_row_for_each_kind(tiny: RunConfig) -> None:
    found = estimates(tiny, check(tiny))
    found[0] = dataclasses.replace(found[0], rank=4, experts=2)
    assert command.memory_table(found).row_count == len(found)
    assert command.round_table(found).row_count == len(found)
    assert command.kind_of(found[0]).endswith("; rank 4; 2 experts")
    assert np.isfinite([e.seconds for e in found]).all()
