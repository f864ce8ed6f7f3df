"""What of a tail is trained, and that nothing else is."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hffm_flower.errors import ConfigError, ModuleError
from hffm_flower.models.encoders import ENCODERS, Tail, Tokens
from hffm_flower.models.encoders.encoder import Encoder
from hffm_flower.models.encoders.tails import (
    Tuning,
    load_trained,
    trained_state,
    trained_tail,
    tunable,
)
from tests.support.raw_items import items

CPU = torch.device("cpu")
TUNED = [name for name, kind in ENCODERS.items() if kind.blocks]
WAYS = [pytest.param(n, t, id=f"{n}-{t}") for n in TUNED for t in ("last:1", "lora:4")]
QUERY = "0.attention.self.query"


@cache
def encoder(name: str) -> Encoder:
    return ENCODERS[name]("random", 3, CPU, 1)


@cache
def at_cut(name: str) -> tuple[str, Tokens]:
    tokens = encoder(name).encode(items(encoder(name).modality, 3))
    stream = min(encoder(name).tail().streams)
    return stream, tokens[stream]


def trained(
    name: str, text: str, targets: tuple[str, ...] = ("*",), rslora: bool = False
) -> nn.Module:
    torch.manual_seed(5)
    tuning = replace(Tuning.parse(text), targets=targets)
    return trained_tail(encoder(name).tail(), tuning, alpha=8.0, rslora=rslora)


def values(tail: nn.Module, name: str) -> Tensor:
    found: Tensor = tail(*at_cut(name)).values
    return found


def step(tail: nn.Module, name: str, times: int = 1) -> None:
    """Steps of gradient descent towards other tokens, scaled to move the largest entry by 0.01."""
    free = [p for p in tail.parameters() if p.requires_grad]
    wanted = torch.randn(values(tail, name).shape, generator=torch.Generator().manual_seed(7))
    for _ in range(times):
        loss = (values(tail, name) - wanted).square().sum()
        with torch.no_grad():
            for parameter, gradient in zip(free, torch.autograd.grad(loss, free), strict=True):
                parameter.sub_(0.01 * gradient / gradient.abs().max().clamp_min(1e-12))


@given(st.integers(1, 999_999), st.integers(1, 999_999))
def test_forms_are_read(rank: int, blocks: int) -> None:
    assert Tuning.parse(f"last:{blocks}") == Tuning(blocks)
    assert Tuning.parse(f"lora:{rank}") == Tuning(1, rank)
    assert Tuning.parse(f"lora:{rank}:{blocks}") == Tuning(blocks, rank, ("*",))


@pytest.mark.parametrize(
    "text",
    [
        *("", "last", "last:", "last:0", "last:-1", "last:1:2", "last:1 ", "last:01", "last:x"),
        *("lora", "lora:0", "lora:0:1", "lora:4:0", "lora:4:", "lora:4:1:1", "Lora:4", "last:²"),
        *("all", "last:" + "9" * 5000),
    ],
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"'last:N', 'lora:R' or 'lora:R:N'") as caught:
        Tuning.parse(text)
    assert caught.value.key == "model.tune"


def test_layers_that_can_be_named() -> None:
    convolutions = ("0._expand_conv", "0._depthwise_conv", "0._project_conv", "head.conv")
    assert tunable(encoder("lite0").tail()) == convolutions
    assert tunable(encoder("speech").tail()) == ("0.0", "0.1", "0.2", "0.3", "0.4")
    assert tunable(encoder("minilm").tail()) == (
        *(f"0.attention.self.{n}" for n in ("query", "key", "value")),
        *("0.attention.output.dense", "0.intermediate.dense", "0.output.dense"),
    )


@pytest.mark.parametrize(("name", "text"), WAYS)
def test_step_0_is_the_frozen_encoder(name: str, text: str) -> None:
    tail = trained(name, text)
    assert trained_state(tail)
    torch.testing.assert_close(
        values(tail, name), values(encoder(name).tail(), name), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(("name", "text"), WAYS)
def test_steps_change_what_is_trained_and_nothing_else(name: str, text: str) -> None:
    tail = trained(name, text).train()
    own = {n for n, p in tail.named_parameters() if p.requires_grad}
    before = {n: t.clone() for n, t in tail.state_dict().items()}
    frozen = values(tail, name).detach()
    step(tail, name)
    changed = {n for n, t in tail.state_dict().items() if not torch.equal(t, before[n])}
    assert changed
    assert changed <= own
    matrices = {n for n in own if before[n].ndim > 1}
    if text == "last:1":
        assert own == {n for n, _ in tail.named_parameters()}
        assert matrices <= changed
    else:
        assert own == matrices
        assert changed == {n for n in own if "lora_B" in n}  # A waits for B to leave zero
        step(tail, name)
        assert all(not torch.equal(tail.state_dict()[n], before[n]) for n in own)
    assert not torch.equal(values(tail, name), frozen)


def test_statistics_of_batch_norm_stay_while_its_scales_are_trained() -> None:
    tail = trained("lite0", "last:1").train()
    norms = {n: m for n, m in tail.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert len(norms) == 4
    held = {n: b.clone() for n, b in tail.named_buffers()}
    scales = {n: m.weight.detach().clone() for n, m in norms.items()}
    step(tail, "lite0")
    assert all(torch.equal(held[n], b) for n, b in tail.named_buffers())
    assert all(not torch.equal(scales[n], m.weight) for n, m in norms.items())
    assert not any("running" in n or "num_batches" in n for n in trained_state(tail))


def test_names_and_shapes_of_the_trained() -> None:
    queries = trained_state(trained("minilm", "lora:4", ("*.query",)))
    assert {n: tuple(t.shape) for n, t in queries.items()} == {
        f"{QUERY}.lora_A.weight": (4, 384),
        f"{QUERY}.lora_B.weight": (384, 4),
    }
    convolution = trained_state(trained("speech", "lora:6", ("0.1",)))
    assert {n: tuple(t.shape) for n, t in convolution.items()} == {
        "0.1.lora_A.weight": (6, 96, 3, 1),
        "0.1.lora_B.weight": (96, 6, 1, 1),
    }
    assert all(not t.requires_grad for t in (queries | convolution).values())


def layers(state: dict[str, Tensor]) -> set[str]:
    return {name.partition(".lora_")[0] for name in state}


def test_targets_are_patterns_and_leave_grouped_convolutions_out() -> None:
    every = trained_state(trained("lite0", "lora:2"))
    assert layers(every) == {"0._expand_conv", "0._project_conv", "head.conv"}
    some = trained_state(trained("lite0", "lora:2", ("head.*", "*depthwise*", "nothing")))
    assert layers(some) == {"head.conv"}
    outputs = trained_state(trained("minilm", "lora:2", ("*.query", "0.output.dense")))
    assert layers(outputs) == {QUERY, "0.output.dense"}  # not 0.attention.output.dense


@pytest.mark.parametrize("targets", [("*depthwise*",), ("*.query", "conv"), ()])
def test_targets_that_match_nothing_are_refused(targets: tuple[str, ...]) -> None:
    listed = r"no layer of this encoder matches .*: 0\._expand_conv, 0\._project_conv, head\.conv$"
    with pytest.raises(ConfigError, match=listed) as caught:
        trained("lite0", "lora:2", targets)
    assert caught.value.key == "model.tune-targets"


def test_a_rank_above_a_layers_size_is_refused() -> None:
    said = r"rank 193 is too large for layer '0\._expand_conv'.*\[1152, 192\]; allowed: 1 to 192"
    with pytest.raises(ConfigError, match=said) as caught:
        trained("lite0", "lora:193")
    assert caught.value.key == "model.tune"
    assert trained_state(trained("lite0", "lora:192"))
    assert trained_state(trained("lite0", "lora:320", ("head.*",)))


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 8 / 4), (True, 8 / 4**0.5)])
def test_the_update_is_scaled_as_asked(rslora: bool, scaling: float) -> None:
    tail = trained("minilm", "lora:4", ("*.query",), rslora)
    whole = encoder("minilm").tail()
    step(tail, "minilm", times=2)
    state = trained_state(tail)
    with torch.no_grad():
        query = whole.get_submodule(QUERY)
        assert isinstance(query, nn.Linear)
        update = state[f"{QUERY}.lora_B.weight"] @ state[f"{QUERY}.lora_A.weight"]
        assert update.abs().max() > 0
        query.weight += scaling * update
    torch.testing.assert_close(values(tail, "minilm"), values(whole, "minilm"))


def test_the_first_factor_is_drawn_from_the_global_stream() -> None:
    first, second = (trained_state(trained("minilm", "lora:4")) for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)
    torch.manual_seed(6)
    other = trained_tail(encoder("minilm").tail(), Tuning(1, 4), alpha=8.0, rslora=False)
    drawn = {n for n, t in trained_state(other).items() if not torch.equal(t, first[n])}
    assert drawn == {n for n in first if "lora_A" in n}


@pytest.mark.parametrize(("name", "text"), WAYS)
def test_state_round_trip(name: str, text: str) -> None:
    source = trained(name, text)
    step(source, name, times=2)
    state = {n: t.clone() for n, t in trained_state(source).items()}
    assert not any("default" in n for n in state)
    copy = trained(name, text)
    assert not torch.equal(values(copy, name), values(source, name))
    load_trained(copy, state)
    assert torch.equal(values(copy, name), values(source, name))
    assert trained_state(copy).keys() == state.keys()
    assert all(p.requires_grad for n, p in copy.named_parameters() if "lora_" in n)


def test_states_that_do_not_fit_are_refused_whole() -> None:
    tail = trained("minilm", "lora:4", ("*.query",))
    held = {n: t.clone() for n, t in trained_state(tail).items()}
    a, b = f"{QUERY}.lora_A.weight", f"{QUERY}.lora_B.weight"
    ones = {n: torch.ones_like(t) for n, t in held.items()}
    for bad, said in (
        ({a: ones[a]}, "missing or unknown: .*lora_B"),
        (ones | {"more": ones[a]}, "missing or unknown: more"),
        ({a: ones[a], b: ones[b][:, :3]}, r"lora_B.weight is \[384, 3\]; .* is \[384, 4\]"),
    ):
        with pytest.raises(ModuleError, match=said):
            load_trained(tail, bad)
    assert all(torch.equal(held[n], t) for n, t in trained_state(tail).items())


def test_an_untouched_tail_has_no_trained_state() -> None:
    tail = encoder("minilm").tail()
    assert trained_state(tail) == {}
    load_trained(tail, {})
    assert isinstance(tail, Tail)


def test_the_lora_library_is_imported_when_it_is_needed() -> None:
    code = "import sys; import hffm_flower.models.encoders.tails; print('peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
