"""Laws of every encoder that is cut: its tail gives what the whole encoder gives."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from hffm_flower.data.dataset import text_item
from hffm_flower.errors import ConfigError
from hffm_flower.models.encoders import (
    ENCODERS,
    Encoder,
    FeatureCache,
    Stream,
    Tail,
    Tokens,
    Weights,
)
from tests.support.raw_items import items

CPU = torch.device("cpu")
TUNED = [name for name, kind in ENCODERS.items() if kind.blocks]
COUNT = 3
CUTS = [
    pytest.param(name, weights, cut, id=f"{name}-{weights}-{cut}")
    for name in TUNED
    for weights, cuts in {
        "random": sorted({1, 2, ENCODERS[name].blocks // 2 + 1, ENCODERS[name].blocks}),
        "pretrained": [1],
    }.items()
    for cut in cuts
]
WHOLE_PRINTS = {
    "lite0": "dac2b00ca651c153cc19899ce8fae47adb9e064687407640f62ec8f0dbcccbd1",
    "minilm": "60c7c86c5c6238dd23ce1d495e3aac1fddcb199628cfaa0ccb28abc7e38f5b37",
    "patches": "e8c9541838f25042110245386f9c1d02a74d573db27cb954866eac4fb1c4dc28",
    "speech": "48a1385ea8506cd03ad93e77161a7b20e6c509fe035f81a14c07dbd3b6dd6676",
}


@cache
def encoder(name: str, weights: Weights, cut: int) -> Encoder:
    return ENCODERS[name](weights, 3, CPU, cut)


@cache
def encoded(name: str, weights: Weights, cut: int) -> dict[str, Tokens]:
    some = encoder(name, weights, cut)
    return some.encode(items(some.modality, COUNT))


@pytest.mark.parametrize(("name", "weights", "cut"), CUTS)
def test_tail_behind_the_cut_is_the_whole(name: str, weights: Weights, cut: int) -> None:
    some = encoder(name, weights, cut)
    at_cut, whole = encoded(name, weights, cut), encoded(name, weights, 0)
    assert at_cut.keys() == whole.keys() == some.streams.keys()
    tail = some.tail()
    assert tail.streams
    for stream, tokens in at_cut.items():
        shape = some.streams[stream]
        assert tokens.values.shape == (COUNT, shape.tokens, shape.width)
        assert not tokens.values[~tokens.mask].any()
        if stream in tail.streams:
            assert not torch.equal(tokens.values, whole[stream].values)
            tokens = tail(stream, tokens)
        torch.testing.assert_close(tokens.values, whole[stream].values, atol=1e-5, rtol=1e-5)
        assert torch.equal(tokens.mask, whole[stream].mask)


@pytest.mark.parametrize("name", ENCODERS)
def test_uncut_encoders_are_what_they_were(name: str) -> None:
    kind = ENCODERS[name]
    assert kind("pretrained", 0, CPU).fingerprint() == WHOLE_PRINTS[name]
    assert kind("pretrained", 0, CPU, 0).fingerprint() == WHOLE_PRINTS[name]
    assert kind("random", 0, CPU).streams == kind.streams == kind.cut_streams(0)


@pytest.mark.parametrize("name", TUNED)
def test_every_cut_has_its_own_fingerprint_and_leaves_the_class_alone(name: str) -> None:
    kind = ENCODERS[name]
    before = dict(kind.streams)
    cuts = range(kind.blocks + 1)
    for weights in ("pretrained", "random"):
        made = [kind(weights, 0, CPU, cut) for cut in cuts]
        assert len({e.fingerprint() for e in made}) == kind.blocks + 1
        assert [e.streams for e in made] == [kind.cut_streams(cut) for cut in cuts]
    assert kind.streams == before


def test_shapes_at_the_cuts() -> None:
    grid = Stream(36, 112)
    of_image = {cut: ENCODERS["lite0"].cut_streams(cut) for cut in (1, 5, 6, 16)}
    assert of_image[1] == {"image": Stream(9, 192), "image-grid": grid}
    assert of_image[5] == {"image": grid, "image-grid": grid}
    assert of_image[6] == {"image": Stream(36, 112), "image-grid": Stream(36, 112)}
    assert of_image[16] == {"image": Stream(2304, 32), "image-grid": Stream(2304, 32)}
    assert ENCODERS["minilm"].cut_streams(4) == {"text": Stream(12, 384)}
    of_sound = [ENCODERS["speech"].cut_streams(cut)["audio"] for cut in (1, 5)]
    assert of_sound == [Stream(27 * 2, 96), Stream(147 * 32, 1)]


def test_the_grid_passes_only_through_what_is_in_front_of_it() -> None:
    assert encoder("lite0", "random", 1).tail().streams == {"image"}
    assert encoder("lite0", "random", 16).tail().streams == {"image", "image-grid"}
    tail = encoder("lite0", "random", 9).tail().requires_grad_(True)
    tokens = encoded("lite0", "random", 9)["image-grid"]
    tail("image-grid", tokens).values.sum().backward()
    trained = {name.split(".")[0] for name, p in tail.named_parameters() if p.grad is not None}
    assert trained == {"0", "1", "2", "3"}  # blocks 7 to 10


def test_a_stream_that_does_not_pass_is_refused() -> None:
    tail = encoder("lite0", "random", 1).tail()
    tokens = encoded("lite0", "random", 1)["image-grid"]
    with pytest.raises(ValueError, match="'image-grid' does not pass through this tail; image do"):
        tail("image-grid", tokens)
    with pytest.raises(ValueError, match="none do"):
        encoder("lite0", "random", 0).tail()("image", tokens)
    plain: Any = Tail
    with pytest.raises(TypeError, match="abstract"):
        plain({}, ["image"])


@pytest.mark.parametrize("name", TUNED)
def test_tails_are_frozen_copies_through_which_gradients_flow(name: str) -> None:
    some = encoder(name, "random", 1)
    first, second = some.tail(), some.tail()
    assert not any(p.requires_grad for p in first.parameters())
    for stream in sorted(first.streams):
        tokens = encoded(name, "random", 1)[stream]
        before = second(stream, tokens).values
        values = tokens.values.clone().requires_grad_(True)
        out = first(stream, Tokens(values, tokens.mask))
        (gradient,) = torch.autograd.grad(out.values.square().sum(), values)
        assert gradient.isfinite().all()
        assert gradient[tokens.mask].abs().sum() > 0
        assert not gradient[~tokens.mask].any()
        with torch.no_grad():
            for parameter in first.parameters():
                parameter.zero_()
        assert torch.equal(second(stream, tokens).values, before)
        assert torch.equal(some.tail()(stream, tokens).values, before)


@pytest.mark.parametrize("name", TUNED)
def test_training_mode_drops_nothing_and_keeps_statistics(name: str) -> None:
    tail = encoder(name, "random", 2).tail()
    held = {n: b.clone() for n, b in tail.named_buffers()}
    stream = min(tail.streams)
    tokens = encoded(name, "random", 2)[stream]
    before = tail(stream, tokens).values
    draws = torch.random.get_rng_state()
    assert torch.equal(tail.train()(stream, tokens).values, before)
    assert torch.equal(torch.random.get_rng_state(), draws)
    assert all(torch.equal(held[n], b) for n, b in tail.named_buffers())
    assert not any(m.training for m in tail.modules())


def test_text_behind_the_mask_makes_no_difference() -> None:
    some = encoder("minilm", "random", 2)
    tokens = some.encode([text_item("what"), text_item("is this a red banana here")])["text"]
    assert not tokens.mask.all()
    tail = some.tail()
    noise = torch.where(tokens.mask[:, :, None], tokens.values, 9 * torch.randn(2, 12, 384))
    clean, noisy = tail("text", tokens), tail("text", Tokens(noise, tokens.mask))
    torch.testing.assert_close(clean.values, noisy.values)
    assert not noisy.values[~tokens.mask].any()


@pytest.mark.parametrize("name", TUNED)
def test_cuts_that_are_not_there_are_refused(name: str) -> None:
    blocks = ENCODERS[name].blocks
    for cut in (-1, blocks + 1):
        said = f"last {cut} blocks of encoder {name!r}; allowed: 0 to {blocks}"
        with pytest.raises(ConfigError, match=said) as caught:
            ENCODERS[name]("random", 0, CPU, cut)
        assert caught.value.key == "model.tune"
        with pytest.raises(ConfigError, match=said):
            ENCODERS[name].cut_streams(cut)


@pytest.mark.parametrize("name", sorted(set(ENCODERS) - set(TUNED)))
def test_encoders_without_weights_are_not_tuned(name: str) -> None:
    said = f"encoder {name!r} has no weights to tune"
    for attempt in (
        lambda: ENCODERS[name]("random", 0, CPU, 1),
        lambda: ENCODERS[name].cut_streams(1),
        lambda: ENCODERS[name]("random", 0, CPU).tail(),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            attempt()
        assert caught.value.key == "model.tune"


@pytest.mark.parametrize("name", TUNED)
def test_each_cut_is_cached_by_itself(name: str, tmp_path: Path) -> None:
    cache_ = FeatureCache(tmp_path)
    some = items(ENCODERS[name].modality, COUNT)
    for cut in (0, 1):
        found = cache_.features(encoder(name, "random", cut), some)
        again = cache_.features(ENCODERS[name]("random", 3, CPU, cut), some)
        for stream, tokens in encoded(name, "random", cut).items():
            assert torch.equal(found[stream].values, tokens.values.half().float())
            assert torch.equal(again[stream].values, found[stream].values)
            assert torch.equal(again[stream].mask, tokens.mask)
    prints = {encoder(name, "random", cut).fingerprint() for cut in (0, 1)}
    assert {folder.name for folder in tmp_path.iterdir()} == prints
    assert len(prints) == 2
