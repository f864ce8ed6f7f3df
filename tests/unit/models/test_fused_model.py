"""A checkpoint's layers within the whole model: wirings, prefixes, recomputing, refusals."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clients.resident import Device, frozen_layers, prefix_of
from clients.spec import model_spec
from clients.trainer import train
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.models.prenorm import FrozenPreNorm
from hffm_flower.modules import ModuleKey
from tests.support import fused, tiny
from tests.support.checkpoints import make_bert, make_vilt
from tests.support.fused_checkpoints import make_gpt2

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vilt(tmp_path_factory.mktemp("vilt") / "vilt")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def swatches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fused.register(monkeypatch)
    yield
    tiny.forget()


def trained(config: RunConfig, t: int = 1) -> tuple[MultimodalModel, float]:
    device = Device(config, 0, CPU)
    model = device.model()
    done = train(model, device.train_data(), config.train, t=t, rounds=2, seed=1, device_index=0)
    return model, done.loss


def output(model: MultimodalModel, device: Device) -> Tensor:
    (part,) = device.train_data()
    with torch.inference_mode():
        out: Tensor = model(part.task, part.inputs)
    return out


def body(model: MultimodalModel, device: Device) -> Tensor:
    """The pooling token behind the backbone."""
    (part,) = device.train_data()
    x = torch.cat([part.inputs[s].values for s in ("text", "image")], 1)
    mask = torch.cat([part.inputs[s].mask for s in ("text", "image")], 1)
    with torch.inference_mode():
        return model.family.fuse(model.frozen, model._layers(), x, mask)[0]


def test_at_step_0_the_corrected_model_is_the_frozen_one_bit_for_bit(
    vilt: Path, cache: Path
) -> None:
    found = {}
    for wiring in ("corrected", "both", "published"):
        device = Device(fused.settings(cache, vilt, model__adapter_wiring=wiring), 0, CPU)
        found[wiring] = body(device.model(), device)
    plain = Device(fused.settings(cache, vilt, model__adapter="none"), 0, CPU)
    frozen = body(plain.model(), plain)
    assert torch.equal(found["corrected"], frozen)
    assert torch.equal(found["both"], frozen)
    assert not torch.allclose(found["published"], frozen, atol=1e-2)


def bottleneck(p: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    hidden = nn.functional.gelu(x @ p[f"{name}.down.weight"].T + p[f"{name}.down.bias"])
    return hidden @ p[f"{name}.up.weight"].T + p[f"{name}.up.bias"]


def test_wirings_are_what_they_say(vilt: Path, cache: Path) -> None:
    """Of one layer: the published adapters stand between the layer's output and the next."""
    torch.manual_seed(1)
    fed, around = torch.randn(2, 3, 32), torch.randn(2, 3, 32)
    for wiring, count in (("published", 8), ("corrected", 4), ("both", 8)):
        config = fused.settings(cache, vilt, model__adapter_wiring=wiring)
        model = Device(config, 0, CPU).model()
        adapter = model.part(ModuleKey.parse("adapter/vilt.2"))
        assert len(model.trained(ModuleKey.parse("adapter/vilt.2"))) == count
        for parameter in adapter.parameters():
            nn.init.normal_(parameter, std=0.3)
        (tuning,) = model._layers()[-1:]
        p = dict(adapter.named_parameters())
        whole = fed + around
        if wiring == "published":
            expected = around + bottleneck(p, "first", whole) + bottleneck(p, "second", whole)
        elif wiring == "corrected":
            expected = whole + bottleneck(p, "output", whole)
        else:
            expected = fed + bottleneck(p, "output", fed) + around
        assert torch.allclose(tuning.joined(fed, around), expected, atol=1e-5), wiring


def test_a_cached_prefix_changes_no_more_than_its_rounding(vilt: Path, cache: Path) -> None:
    """Raw tokens through all layers, and cached states through the last: nearly the same."""
    config = fused.settings(cache, vilt, model__adapter_layers=1)
    device = Device(config, 0, CPU)
    assert prefix_of(config, "swatch4", ("image", "text"), CPU) is not None
    model = device.model()
    assert [str(k) for k in model.keys] == ["adapter/vilt.2", "head/swatch4"]
    cached = output(model, device)
    assert list((cache / "cache" / "features").glob("*/*/*"))
    whole = Device(fused.settings(cache, vilt, model__adapter="none"), 0, CPU)
    (raw,) = whole.train_data()
    (states,) = device.train_data()
    assert torch.equal(raw.targets, states.targets)
    assert not torch.allclose(raw.inputs["image"].values, states.inputs["image"].values)
    with torch.inference_mode():
        other = whole.model()
        other.load({k: s for k, s in model.state().items() if k in other.keys})
        told = other(raw.task, raw.inputs)
    assert torch.allclose(told, cached, atol=5e-3)
    # The cache is hit: another process reads what this one has left, and gets the same bits.
    tiny.forget()
    again = Device(config, 0, CPU)
    assert torch.equal(output(again.model(), again), cached)


@pytest.mark.parametrize(
    ("why", "changes"),
    [
        ("all layers are adapted", {}),
        ("prompts stand in front", {"model__prompts": "task=1", "model__adapter_layers": 1}),
        ("text may be dropped", {"train__modality_dropout": 0.5, "model__adapter_layers": 1}),
    ],
)
def test_no_prefix_is_cached_where(
    why: str, changes: dict[str, object], vilt: Path, cache: Path
) -> None:
    config = fused.settings(cache, vilt, data__tasks="swatch4-free", **changes)
    assert prefix_of(config, "swatch4-free", ("image", "text"), CPU) is None, why
    model, loss = trained(config)
    assert loss > 0
    assert all(torch.isfinite(p).all() for p in model.parameters_of(model.keys).values())


def test_without_text_the_prompt_goes_through_the_frozen_layers(vilt: Path, cache: Path) -> None:
    """`prompt/cls` is trained, so nothing behind it is cached, and its gradient reaches it."""
    config = fused.settings(cache, vilt, data__tasks="swatch4-free", model__adapter_layers=1)
    spec = model_spec(config)
    assert prefix_of(config, "swatch4-free", ("image",), CPU) is None
    model = MultimodalModel(spec, ["swatch4-free"], ("image",), frozen_layers(config, CPU))
    assert "prompt/cls" in map(str, model.keys)
    (part,) = Device(fused.settings(cache, vilt, data__tasks="swatch4-free"), 0, CPU).train_data()
    out = model(part.task, {"image": part.inputs["image"]})
    torch.autograd.backward(model.head(part.task).loss(out, part.targets))
    (token,) = model.trained(ModuleKey.parse("prompt/cls")).values()
    assert token.grad is not None
    assert token.grad.abs().max() > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"model__adapter_wiring": "corrected"},
        {"model__adapter": "lora", "model__lora_targets": "query up"},
        {"model__adapter": "experts", "model__experts": 2},
        {"model__adapter_layers": 2},
    ],
    ids=["bottleneck", "lora", "experts", "last-two"],
)
def test_recomputing_gives_the_same_bits(
    changes: dict[str, object], vilt: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every layer of a step runs once more, in the backward pass."""
    runs, forward = [0], FrozenPreNorm.forward

    def counted(layer: FrozenPreNorm, *inputs: Any, **options: Any) -> Tensor:
        runs[-1] += torch.is_grad_enabled()
        return forward(layer, *inputs, **options)

    monkeypatch.setattr(FrozenPreNorm, "forward", counted)
    kept, loss = trained(fused.settings(cache, vilt, **changes))
    runs.append(0)
    again, loss_again = trained(fused.settings(cache, vilt, train__checkpointing=True, **changes))
    assert loss == loss_again
    assert runs[1] == 2 * runs[0] > 0
    for name, value in kept.parameters_of(kept.keys).items():
        assert torch.equal(value, again.parameters_of(again.keys)[name]), name


def test_padding_that_nobody_needs_is_left_out(vilt: Path, cache: Path) -> None:
    device = Device(fused.settings(cache, vilt), 0, CPU)
    model = device.model()
    (part,) = device.train_data()
    trimmed = model.trimmed(part.inputs)
    longest = int(part.inputs["text"].mask.sum(1).max())
    assert trimmed["text"].values.shape[1] == longest < 40
    assert trimmed["image"].values.shape == part.inputs["image"].values.shape
    with torch.inference_mode():
        short, long = (model(part.task, i) for i in (trimmed, part.inputs))
    assert torch.allclose(short, long, atol=1e-5)


def test_frozen_weights_in_bf16_are_near_and_take_half(vilt: Path, cache: Path) -> None:
    config = fused.settings(cache, vilt)
    half = config.with_values(model__backbone_precision="bf16")
    outs, sizes = [], []
    for each in (config, half):
        device = Device(each, 0, CPU)
        model = device.model()
        outs.append(output(model, device))
        layers = [m for m in model.frozen.modules() if isinstance(m, nn.Linear)]
        sizes.append(sum(m.weight.nbytes for m in layers))
        assert all(p.dtype == torch.float32 for p in model.parameters_of(model.keys).values())
    assert sizes[0] == 2 * sizes[1]
    assert not torch.equal(outs[0], outs[1])
    assert torch.allclose(outs[0], outs[1], atol=0.1)


@pytest.mark.parametrize("adapter", ["bottleneck", "lora", "experts"])
def test_a_causal_model_learns_from_text_and_projected_pictures(
    adapter: str, tmp_path: Path, cache: Path
) -> None:
    gpt2 = make_gpt2(tmp_path / "gpt2")
    config = fused.settings(
        cache, gpt2, model__adapter=adapter, model__encoders=f"image=lite0 text=hf:{gpt2}",
        model__weights="random", train__local_epochs=4,
    )  # fmt: skip
    model, first = trained(config)
    assert "projector/image" in map(str, model.keys)
    assert "projector/text" not in map(str, model.keys)
    before = Device(config, 0, CPU)
    loss = model.head("swatch4").loss
    (part,) = before.train_data()
    with torch.inference_mode():
        start = loss(before.model()(part.task, part.inputs), part.targets)
        end = loss(model(part.task, part.inputs), part.targets)
    assert first > 0
    assert float(end) < 0.9 * float(start)


def test_another_encoder_gets_a_projector(vilt: Path, cache: Path) -> None:
    config = fused.settings(cache, vilt, model__encoders=f"image=lite0 text=hf:{vilt}")
    model = Device(config, 0, CPU).model()
    assert "projector/image" in map(str, model.keys)
    assert "projector/text" not in map(str, model.keys)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model__adapter_layers": 4}, "4 is above the number of frozen layers .*, 3"),
        (
            {"model__adapter": "lora", "model__adapter_wiring": "published"},
            "wiring 'published' is of bottlenecks",
        ),
        (
            {"model__backbone": "small", "model__encoders": "image=lite0 text=minilm",
             "model__adapter_wiring": "corrected"},
            "wiring 'corrected' is of bottlenecks in frozen layers",
        ),
        (
            {"model__backbone": "minilm-fusion", "model__encoders": "image=lite0 text=minilm",
             "model__backbone_precision": "bf16"},
            "unknown precision 'bf16'.*allowed: fp32",
        ),
        ({"model__backbone": "hf:/nowhere/at/all"}, "no folder '/nowhere/at/all'"),
        ({"model__lora_targets": "gate", "model__adapter": "lora"}, "'gate' matches no projection"),
        ({"model__backbone": "vilt"}, "unknown backbone 'vilt'.*hf:SOURCE"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    changes: dict[str, object], says: str, vilt: Path, cache: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        model_spec(fused.settings(cache, vilt, **changes))


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path, cache: Path) -> None:
    bert = make_bert(tmp_path / "bert")
    with pytest.raises(ConfigError, match=re.escape("is 'bert'; allowed here: gpt2, llama")):
        model_spec(fused.settings(cache, bert, model__encoders="text=minilm"))
