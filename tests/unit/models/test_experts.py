"""The mixture against a loop over examples and experts; masking, usage, balance, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hffm_flower.errors import ConfigError
from hffm_flower.models.experts import ExpertLayer, ExpertModule, Routing

LAYERS = ("fusion.4", "fusion.5")
WIDTH, RANK = 12, 3


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(5)


def experts(count: int, *, trained: bool = True, gate: float = 1.0) -> list[ExpertModule]:
    made = [ExpertModule(LAYERS, WIDTH, RANK) for _ in range(count)]
    for expert in made:
        for layer in LAYERS:
            part = expert.part(layer)
            torch.nn.init.normal_(part.gate, std=gate)
            torch.nn.init.normal_(part.gate_bias, std=gate)
            if trained:
                torch.nn.init.normal_(part.up.weight)
                torch.nn.init.normal_(part.up.bias)
    return made


def slow(layer: str, every: list[ExpertModule], held: list[int], k: int, x_TD: Tensor) -> Tensor:
    """One example by the definition: all gates, those not held at minus infinity."""
    parts = [e.part(layer) for e in every]
    logits = [float((x_TD[0] @ p.gate + p.gate_bias).detach()) for p in parts]
    masked = [g if e in held else -torch.inf for e, g in enumerate(logits)]
    probs = torch.tensor(masked).softmax(0)
    best = sorted(held, key=lambda e: -float(probs[e]))[:k]
    out = x_TD.clone()
    for e in best:
        p = parts[e]
        inner = F.gelu(x_TD @ p.down.weight.T + p.down.bias)
        share = probs[e] / probs[best].sum()
        out = out + share * (inner @ p.up.weight.T + p.up.bias)
    return out


@pytest.mark.parametrize("k", [1, 2, 3, 9])
@pytest.mark.parametrize("held", [[0, 1, 2, 3, 4], [1, 3, 4], [2]])
def test_the_layer_is_the_slow_loop_with_the_others_masked(held: list[int], k: int) -> None:
    every = experts(5)
    x = torch.randn(7, 4, WIDTH)
    for layer in LAYERS:
        out = ExpertLayer(layer, [every[e] for e in held], k, Routing())(x)
        expected = torch.stack([slow(layer, every, held, k, x_TD) for x_TD in x])
        assert torch.allclose(out, expected, atol=1e-4)
        assert not torch.allclose(out, x, atol=1e-2)


def test_only_token_0_decides_and_every_token_is_changed() -> None:
    every, routing, other = experts(4), Routing(), Routing()
    x = torch.randn(6, 3, WIDTH)
    y = x.clone()
    y[:, 1:] = torch.randn(6, 2, WIDTH)
    out = ExpertLayer(LAYERS[0], every, 2, routing)(x)
    changed = ExpertLayer(LAYERS[0], every, 2, other)(y)
    assert routing.used_BE is not None
    assert other.used_BE is not None
    assert torch.equal(routing.used_BE, other.used_BE)
    assert torch.allclose(out[:, 0], changed[:, 0], atol=1e-6)
    assert ((out - x).abs().amax(-1) > 0).all()


@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_model_begins_frozen_bit_for_bit(k: int) -> None:
    x = torch.randn(3, 5, WIDTH) * 100
    for layer in LAYERS:
        assert torch.equal(ExpertLayer(layer, experts(4, trained=False), k, Routing())(x), x)


def test_without_experts_nothing_happens() -> None:
    x, routing = torch.randn(3, 5, WIDTH), Routing()
    assert routing.examples() == ()
    assert ExpertLayer(LAYERS[0], [], 2, routing)(x) is x
    assert routing.used_BE is not None
    assert routing.used_BE.shape == (3, 0)
    assert float(routing.balance.detach()) == 0
    assert routing.examples() == ()


def test_usage_is_k_per_layer_and_the_union_over_layers() -> None:
    every, x = experts(6), torch.randn(40, 2, WIDTH)
    both, single = Routing(), [Routing(), Routing()]
    for layer, alone in zip(LAYERS, single, strict=True):
        ExpertLayer(layer, every, 2, both)(x)
        ExpertLayer(layer, every, 2, alone)(x)
        assert alone.used_BE is not None
        assert (alone.used_BE.sum(1) == 2).all()
        assert sum(alone.examples()) == 80
    first, second = (r.used_BE for r in single)
    assert first is not None
    assert second is not None
    assert both.used_BE is not None
    assert torch.equal(both.used_BE, first | second)
    assert not torch.equal(first, second)
    assert both.examples() == tuple((first | second).sum(0).tolist())
    assert both.layers == 2
    assert float(both.balance.detach()) == pytest.approx(
        sum(float(r.balance.detach()) for r in single)
    )


def test_equal_gates_choose_the_first_experts() -> None:
    every, routing = experts(5, gate=0.0), Routing()
    ExpertLayer(LAYERS[0], every, 2, routing)(torch.randn(9, 1, WIDTH))
    assert routing.examples() == (9, 9, 0, 0, 0)


def test_balance_is_one_when_uniform_and_the_number_of_experts_when_collapsed() -> None:
    x = torch.randn(64, 2, WIDTH)
    uniform, routing = experts(4, gate=0.0), Routing()
    ExpertLayer(LAYERS[0], uniform, 1, routing)(x)
    assert float(routing.balance.detach()) == pytest.approx(1.0)

    for e, expert in enumerate(uniform):  # example b goes to b mod 4, nearly surely
        torch.nn.init.constant_(expert.part(LAYERS[0]).gate, 0.0)
        expert.part(LAYERS[0]).gate.data[e] = 50.0
    even = torch.eye(WIDTH)[torch.arange(64) % 4][:, None]
    routing = Routing()
    ExpertLayer(LAYERS[0], uniform, 1, routing)(even)
    assert routing.examples() == (16, 16, 16, 16)
    assert float(routing.balance.detach()) == pytest.approx(1.0)

    for e, expert in enumerate(uniform):
        torch.nn.init.constant_(expert.part(LAYERS[0]).gate, 0.0)
        torch.nn.init.constant_(expert.part(LAYERS[0]).gate_bias, 50.0 * (e == 2))
    routing = Routing()
    ExpertLayer(LAYERS[0], uniform, 1, routing)(x)
    assert routing.examples() == (0, 0, 64, 0)
    assert float(routing.balance.detach()) == pytest.approx(4.0)


def test_balance_is_the_published_formula() -> None:
    every, routing, x = experts(5), Routing(), torch.randn(11, 2, WIDTH)
    ExpertLayer(LAYERS[1], every, 2, routing)(x)
    parts = [e.part(LAYERS[1]) for e in every]
    logits = torch.stack([x[:, 0] @ p.gate + p.gate_bias for p in parts], 1)
    assert routing.used_BE is not None
    share = routing.used_BE.sum(0) / (11 * 2)
    expected = 5 * float((share * logits.softmax(1).mean(0)).sum().detach())
    assert float(routing.balance.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("source", ["output", "balance"])
def test_the_gradient_reaches_the_gate_rows(source: str) -> None:
    every, routing = experts(3), Routing()
    x = torch.randn(20, 4, WIDTH)
    out = ExpertLayer(LAYERS[0], every, 2, routing)(x)
    torch.autograd.backward(out.square().sum() if source == "output" else routing.balance)
    for expert in every:
        part = expert.part(LAYERS[0])
        for row in (part.gate, part.gate_bias):
            assert row.grad is not None
            assert row.grad.abs().max() > 0
        assert expert.part(LAYERS[1]).gate.grad is None
        if source == "output":
            assert part.up.weight.grad is not None
            assert part.up.weight.grad.abs().max() > 0


def test_an_expert_that_no_example_used_learns_nothing_from_the_output() -> None:
    every, routing = experts(3, gate=0.0), Routing()
    out = ExpertLayer(LAYERS[0], every, 2, routing)(torch.randn(8, 2, WIDTH))
    torch.autograd.backward(out.square().sum())
    idle = every[2].part(LAYERS[0])
    assert routing.examples() == (8, 8, 0)
    assert all(p.grad is None or not p.grad.any() for p in idle.parameters())


def test_a_far_worse_second_choice_stays_finite() -> None:
    every, routing = experts(3), Routing()
    for e, expert in enumerate(every):
        torch.nn.init.constant_(expert.part(LAYERS[0]).gate_bias, -500.0 * e)
    out = ExpertLayer(LAYERS[0], every, 2, routing)(torch.randn(4, 2, WIDTH))
    torch.autograd.backward(out.sum())
    assert out.isfinite().all()
    gradients = [p.grad for e in every for p in e.part(LAYERS[0]).parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_runs_in_bfloat16_autocast_and_routes_as_in_float32(dtype: torch.dtype) -> None:
    every, low, high = experts(4), Routing(), Routing()
    x = torch.randn(6, 3, WIDTH).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = ExpertLayer(LAYERS[0], every, 2, low)(x.to(dtype))
        torch.autograd.backward(out.float().sum() + low.balance)
    expected = ExpertLayer(LAYERS[0], every, 2, high)(x.float())
    assert out.dtype == dtype
    assert low.balance.dtype == torch.float32
    assert low.used_BE is not None
    assert high.used_BE is not None
    assert torch.equal(low.used_BE, high.used_BE)
    assert torch.allclose(out.float(), expected, rtol=0.05, atol=0.2)


def test_an_expert_travels_whole_under_names_without_dots_of_layers() -> None:
    state = ExpertModule(LAYERS, WIDTH, RANK).state_dict()
    names = {"down.weight", "down.bias", "up.weight", "up.bias", "gate", "gate_bias"}
    assert set(state) == {f"parts.{n}.{t}" for n in ("fusion:4", "fusion:5") for t in names}
    assert state["parts.fusion:4.gate"].shape == (WIDTH,)
    assert 0 < state["parts.fusion:4.gate"].abs().max() < 0.2
    assert not state["parts.fusion:4.gate_bias"].any()


def test_no_expert_per_example_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 experts per example; it must be at least 1"):
        ExpertLayer(LAYERS[0], [], 0, Routing())
