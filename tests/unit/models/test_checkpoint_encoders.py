"""Laws of every encoder that reads a checkpoint, for every architecture."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from hffm_flower.data.dataset import Item
from hffm_flower.errors import ConfigError
from hffm_flower.models.checkpoints import Checkpoint
from hffm_flower.models.encoders import (
    CHECKPOINT_ENCODERS,
    ENCODERS,
    CheckpointEncoder,
    Encoder,
    Precision,
    Stream,
    Tokens,
    Weights,
    encoder_type,
)
from hffm_flower.models.encoders.encoder import BATCH
from hffm_flower.models.encoders.tails import Tuning, trained_parameters, trained_tail, tunable
from tests.support.checkpoints import (
    LAYERS,
    MAKERS,
    WIDTH,
    cropping,
    make_wav2vec2_stable,
    square,
)
from tests.support.raw_items import items

CPU = torch.device("cpu")
KINDS = [pytest.param(m, k, id=k) for m, kinds in MAKERS.items() for k in kinds]
KINDS.append(pytest.param("audio", "wav2vec2-stable", id="wav2vec2-stable"))
SHAPES = {
    "image": {"image": Stream(10, WIDTH), "image-grid": Stream(36, WIDTH)},
    "text": {"text": Stream(24, WIDTH)},
    "audio": {"audio": Stream(9, WIDTH)},
}
COUNT = BATCH + 3
PROCESSORS = {
    "vit": partial(square, "ViTImageProcessorPil"),
    "dinov2": partial(cropping, "BitImageProcessorPil"),
    "clip": partial(cropping, "CLIPImageProcessorPil"),
    "clip_vision_model": partial(cropping, "CLIPImageProcessorPil"),
    "siglip": partial(square, "SiglipImageProcessorPil"),
    "siglip_vision_model": partial(square, "SiglipImageProcessorPil"),
}
"""Architecture -> the preprocessing that its maker saves."""

Named = Callable[[str, str], str]


@pytest.fixture(scope="session")
def named(tmp_path_factory: pytest.TempPathFactory) -> Named:
    """Modality and architecture -> the encoder's name in a run's settings."""
    root = tmp_path_factory.mktemp("checkpoints")

    @cache
    def made(modality: str, kind: str) -> str:
        make = {**MAKERS[modality], "wav2vec2-stable": make_wav2vec2_stable}[kind]
        return f"hf:{make(root / kind)}"

    return made


@cache
def encoder(
    modality: str,
    name: str,
    cut: int = 0,
    weights: Weights = "pretrained",
    precision: Precision = "fp32",
) -> Encoder:
    return encoder_type(modality, name, precision=precision)(weights, 3, CPU, cut)


@cache
def encoded(modality: str, name: str, cut: int = 0) -> dict[str, Tokens]:
    return encoder(modality, name, cut).encode(items(modality, COUNT))


def test_every_architecture_has_a_maker() -> None:
    read = {m: set(kind.anatomies) for m, kind in CHECKPOINT_ENCODERS.items()}
    assert read == {m: set(kinds) for m, kinds in MAKERS.items()}


@pytest.mark.parametrize(("modality", "kind"), KINDS)
def test_reading_attributes_reads_no_weights(
    named: Named, monkeypatch: pytest.MonkeyPatch, modality: str, kind: str
) -> None:
    name = named(modality, kind)
    monkeypatch.setattr(Checkpoint, "load", None)
    family = encoder_type(modality, name)
    assert encoder_type(modality, name) is family
    assert (family.modality, family.blocks, family.assets) == (modality, LAYERS, ())
    assert family.streams == SHAPES[modality] == family.cut_streams(0)
    assert family.passing(0) == frozenset()
    assert family.passing(1) == SHAPES[modality].keys()
    made = [family("pretrained", seed, CPU, cut) for seed in (0, 1) for cut in range(LAYERS + 1)]
    prints = [e.fingerprint() for e in made]
    assert prints[: LAYERS + 1] == prints[LAYERS + 1 :]
    assert len(set(prints)) == LAYERS + 1
    random = {family("random", seed, CPU).fingerprint() for seed in (0, 1)}
    assert len(random | set(prints)) == LAYERS + 3
    half = encoder_type(modality, name, precision="bf16")("pretrained", 0, CPU)
    assert half.fingerprint() not in prints
    for cut in (LAYERS + 1, -1):
        with pytest.raises(ConfigError, match=f"cannot tune the last {cut} blocks .*0 to {LAYERS}"):
            family.cut_streams(cut)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("modality", "kind"), KINDS)
def test_outputs_are_as_declared_frozen_and_the_items_own(
    named: Named, modality: str, kind: str, precision: Precision
) -> None:
    some = items(modality, COUNT)
    made = encoder(modality, named(modality, kind), precision=precision)
    before = torch.random.get_rng_state()
    found = made.encode(some)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found.keys() == made.streams.keys()
    for stream, shape in made.streams.items():
        tokens = found[stream]
        assert tokens.values.shape == (COUNT, shape.tokens, shape.width)
        assert (tokens.values.dtype, tokens.mask.dtype) == (torch.float32, torch.bool)
        assert tokens.mask[:, 0].all()
        assert tokens.mask.all() == (modality != "text")
        assert not tokens.values.requires_grad
        assert not tokens.values[~tokens.mask].any()
        assert tokens.values.isfinite().all()
        assert tokens.values.std(0).mean() > 0.005  # tells items apart
    # Neither place nor companions nor their number change an item's bits.
    for rows in (list(range(COUNT))[::-1], [4], [7, 1, 1, 0]):
        again = made.encode([some[i] for i in rows])
        for stream, tokens in again.items():
            assert torch.equal(tokens.values, found[stream].values[rows])
            assert torch.equal(tokens.mask, found[stream].mask[rows])
    whole = encoded(modality, named(modality, kind))
    for stream, tokens in found.items():
        gap = (tokens.values - whole[stream].values).abs().max()
        assert (gap > 0) == (precision == "bf16")
        assert gap < 0.1


@pytest.mark.parametrize(("modality", "kind"), KINDS)
def test_states_are_those_of_the_network(named: Named, modality: str, kind: str) -> None:
    name = named(modality, kind)
    network = transformers.AutoModel.from_pretrained(name.removeprefix("hf:"))
    network = getattr(network, "vision_model", network).eval()
    family = encoder_type(modality, name)
    assert issubclass(family, CheckpointEncoder)
    some = items(modality, BATCH)
    inputs = family.prepare(some)
    if modality == "image":  # of several proportions; by a processor that no file was read for
        pictures = [item.load() for item in some]
        inputs = dict(PROCESSORS[kind]()(pictures, return_tensors="pt"))
    with torch.no_grad():
        states, summary = reference(network, inputs)
    for stream, tokens in encoded(modality, name).items():
        values, mask = tokens.values[:BATCH], tokens.mask[:BATCH]
        wanted = states * mask[:, :, None] if modality == "text" else states
        if stream == "image":
            torch.testing.assert_close(values[:, 0], summary, atol=1e-5, rtol=1e-5)
        if modality == "image":
            count, first = (3, 1) if stream == "image" else (6, 0)
            wanted, values = cells(wanted[:, -64:], count), values[:, first:]
        if modality == "audio":
            wanted = torch.nn.functional.adaptive_avg_pool1d(wanted.mT, 9).mT
        torch.testing.assert_close(values, wanted, atol=1e-5, rtol=1e-5)


def cells(patches: Tensor, count: int) -> Tensor:
    """Means of 8 x 8 patches over ``count`` x ``count`` cells, row by row."""
    ends = [(8 * i // count, -(-8 * (i + 1) // count)) for i in range(count)]
    rows = patches.reshape(len(patches), 8, 8, -1)
    means = [rows[:, top:end, left:right].mean((1, 2)) for top, end in ends for left, right in ends]
    return torch.stack(means, 1)


def reference(network: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """States behind the last block and its norm, and the summary of a picture."""
    if network.config.model_type == "whisper":
        body = network.encoder
        x = torch.nn.functional.gelu(body.conv1(inputs["input_features"]))
        x = torch.nn.functional.gelu(body.conv2(x)).mT + body.embed_positions.weight[:75]
        for block in body.layers:
            x = block(x, None)
        return body.layer_norm(x), x
    found = network(**inputs)
    states = found.last_hidden_state
    pooled = found.get("pooler_output", states[:, 0])
    if network.config.model_type == "clip_vision_model":
        states = network.post_layernorm(states)
    return states, states[:, 0] if network.config.model_type == "vit" else pooled


@pytest.mark.parametrize("cut", [1, LAYERS])
@pytest.mark.parametrize(("modality", "kind"), KINDS)
def test_tail_behind_the_cut_is_the_whole(named: Named, modality: str, kind: str, cut: int) -> None:
    name = named(modality, kind)
    made, at_cut, whole = (
        encoder(modality, name, cut), encoded(modality, name, cut), encoded(modality, name),
    )  # fmt: skip
    tail = made.tail()
    assert tail.streams == whole.keys()
    assert not any(p.requires_grad for p in tail.parameters())
    assert not any(m.training for m in tail.train().modules())
    for stream, tokens in at_cut.items():
        assert tokens.values.shape[1:] == (made.streams[stream].tokens, WIDTH)
        values = tokens.values.clone().requires_grad_(True)
        found = tail(stream, Tokens(values, tokens.mask))
        torch.testing.assert_close(found.values, whole[stream].values, atol=1e-5, rtol=1e-5)
        assert torch.equal(found.mask, whole[stream].mask)
        (gradient,) = torch.autograd.grad(found.values.square().sum(), values)
        assert gradient[tokens.mask].abs().sum() > 0
        assert not gradient[~tokens.mask].any()


@pytest.mark.parametrize(("modality", "kind"), KINDS)
def test_lora_starts_as_nothing_and_every_factor_learns(
    named: Named, modality: str, kind: str
) -> None:
    name = named(modality, kind)
    made = encoder(modality, name, 1)
    tail = made.tail()
    layers = tunable(tail)
    assert sum(layer.startswith("0.") for layer in layers) == 6  # four of attention, two behind
    trained = trained_tail(tail, Tuning(1, rank=2), alpha=4.0, rslora=False)
    parameters = trained_parameters(trained)
    assert len(parameters) == 2 * len(layers)
    for number in range(2):
        loss = torch.zeros(())
        for stream, tokens in encoded(modality, name, 1).items():
            found = trained(stream, tokens)
            if number == 0:
                whole = encoded(modality, name)[stream].values
                torch.testing.assert_close(found.values, whole, atol=1e-5, rtol=1e-5)
            loss = loss + (found.values - 1).square().sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                parameter.sub_(0.01 * gradient.sign())
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize(("modality", "kind"), [p.values for p in KINDS if p.id in MAKERS["image"]])
def test_pictures_of_any_mode_are_read(named: Named, modality: str, kind: str) -> None:
    grey = Item("", lambda: Image.new("L", (20, 30), 90))
    (tokens, *_) = encoder(modality, named(modality, kind)).encode([grey]).values()
    assert tokens.values.isfinite().all()


@pytest.mark.parametrize("modality", MAKERS)
def test_wrong_input_is_told(named: Named, modality: str) -> None:
    made = encoder(modality, named(modality, next(iter(MAKERS[modality]))))
    with pytest.raises(TypeError, match=r"encoder reads .*, not"):
        made.encode([Item("", lambda: np.zeros(3, np.float32))])
    assert all(len(tokens.values) == 0 for tokens in made.encode([]).values())


def test_another_architecture_or_modality_is_refused(named: Named) -> None:
    with pytest.raises(ConfigError, match=r"is 'vit'; allowed here: bert, distilbert"):
        encoder_type("text", named("image", "vit"))
    with pytest.raises(ConfigError, match=r"is 'whisper'; allowed here: clip, .*vit"):
        encoder_type("image", named("audio", "whisper"))
    with pytest.raises(ConfigError, match=r"checkpoint 'sensor'; allowed: audio, image, text"):
        encoder_type("sensor", named("image", "vit"))
    with pytest.raises(ConfigError, match=r"'lite0' reads image, not text"):
        encoder_type("text", "lite0")
    with pytest.raises(ConfigError, match=r"unknown encoder 'vit'; allowed: lite0, .*, hf:"):
        encoder_type("image", "vit")
    assert encoder_type("image", "lite0", precision="bf16") is ENCODERS["lite0"]
