"""Adapters start as the frozen model; projectors and prompts have the shapes they say."""

from __future__ import annotations

import pytest
import torch

from hffm_flower.models.adapters import BottleneckAdapter, ClsPrompt, LayerAdapters, Projector


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(5)


@pytest.mark.parametrize(("width", "rank"), [(8, 1), (16, 4), (384, 32)])
def test_an_adapter_begins_as_the_identity_bit_for_bit(width: int, rank: int) -> None:
    x = torch.randn(3, 5, width) * 100
    both = LayerAdapters(width, rank)
    for adapter in (BottleneckAdapter(width, rank), both.attention, both.output):
        assert torch.equal(adapter(x), x)
        assert adapter.down.weight.shape == (rank, width)
        assert adapter.down.weight.abs().max() > 0  # else nothing would ever move


def test_the_gradient_reaches_an_adapter() -> None:
    adapter = BottleneckAdapter(8, 2)
    x = torch.randn(3, 5, 8)
    adapter(x).square().sum().backward()
    up, down = adapter.up.weight.grad, adapter.down.weight.grad
    assert up is not None
    assert down is not None
    assert up.abs().max() > 0
    assert down.abs().max() == 0  # U is zero, so D waits for one step
    torch.optim.SGD(adapter.parameters(), lr=0.1).step()
    adapter.zero_grad()
    assert not torch.equal(adapter(x), x)
    adapter(x).square().sum().backward()
    assert adapter.down.weight.grad is not None
    assert adapter.down.weight.grad.abs().max() > 0


def test_an_adapter_is_the_published_formula() -> None:
    adapter = BottleneckAdapter(4, 3)
    torch.nn.init.normal_(adapter.up.weight)
    torch.nn.init.normal_(adapter.up.bias)
    x = torch.randn(2, 4)
    inner = x @ adapter.down.weight.T + adapter.down.bias
    gelu = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
    expected = x + gelu @ adapter.up.weight.T + adapter.up.bias
    assert torch.allclose(adapter(x), expected, atol=1e-6)


def test_a_projector_makes_normalised_tokens_of_the_new_width() -> None:
    projector = Projector(4, 6, 10)
    x = torch.randn(3, 4, 6)
    out = projector(x)
    assert out.shape == (3, 4, 10)
    assert torch.allclose(out.mean(-1), torch.zeros(3, 4), atol=1e-5)
    assert torch.allclose(out.var(-1, unbiased=False), torch.ones(3, 4), atol=1e-2)
    # A token's scale does not matter, its place does.
    assert torch.allclose(projector(x * 50), out, atol=1e-2)
    assert not torch.allclose(projector(x.flip(1)).flip(1), out, atol=1e-4)
    with pytest.raises(RuntimeError):
        projector(torch.randn(3, 5, 6))


def test_a_prompt_is_one_token_for_every_example() -> None:
    prompt = ClsPrompt(7)
    out = prompt(3)
    assert out.shape == (3, 1, 7)
    assert all(torch.equal(row[0], prompt.token) for row in out)
    out.sum().backward()
    assert prompt.token.grad is not None
    assert prompt.token.grad.tolist() == [3.0] * 7
