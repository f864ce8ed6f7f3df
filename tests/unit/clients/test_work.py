"""Operations of training, counted and by hand."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from clients import work
from clients.examples import TaskData
from clients.work import training_flops
from hffm_flower.config import RunConfig
from hffm_flower.models.encoders.encoder import Tokens, full
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.records import to_bytes
from tests.support.tiny import examples, model_of

WIDE, INNER, OUT = 6, 4, 3


class Layers(nn.Module):
    """Linear layers where a model would be."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.spec = SimpleNamespace(backbone=f"layers {widths}")
        self.rank, self.experts, self.recompute = 0, (), False
        self.layers = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))

    def forward(self, task: str, inputs: dict[str, Tokens]) -> Tensor:
        return cast(Tensor, self.layers(next(iter(inputs.values())).values[:, 0]))

    def head(self, task: str) -> SimpleNamespace:
        return SimpleNamespace(loss=lambda output, targets: output.sum())


def data(rows: int) -> TaskData:
    inputs = {"image": full(torch.ones(rows, 1, WIDE))}
    return TaskData("tiny-vqa", inputs, torch.zeros(rows, dtype=torch.int64))


def flops(*widths: int, rows: int = 5) -> float:
    (found,) = training_flops(cast(MultimodalModel, Layers(*widths)), [data(rows)])
    return found


@pytest.fixture(autouse=True)
def nothing_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_counted", {})


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_linear_layer_by_hand(rows: int) -> None:
    """Forward 2ab; backward 2ab for the weights, and 2ab more for what lies before."""
    assert flops(WIDE, OUT, rows=rows) == 4 * WIDE * OUT
    assert flops(WIDE, INNER, OUT, rows=rows) == 4 * WIDE * INNER + 6 * INNER * OUT


def test_a_frozen_layer_costs_no_gradient_of_its_weights() -> None:
    frozen = Layers(WIDE, INNER, OUT)
    frozen.layers[0].requires_grad_(False)
    (found,) = training_flops(cast(MultimodalModel, frozen), [data(3)])
    assert found == 2 * WIDE * INNER + 4 * INNER * OUT


class Attention(Layers):
    """Queries, keys and values of a trained layer."""

    def forward(self, task: str, inputs: dict[str, Tokens]) -> Tensor:
        (tokens,) = inputs.values()
        q, k, v = self.layers(tokens.values)[:, None].chunk(3, -1)
        mask = tokens.mask[:, None, None, :]
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def test_attention_by_hand() -> None:
    """Scores and their sum of values, 2 T^2 D each; both again for either factor backwards."""
    tokens, width = 5, 4
    inputs = {"image": full(torch.ones(3, tokens, WIDE))}
    part = TaskData("tiny-vqa", inputs, torch.zeros(3, dtype=torch.int64))
    model = cast(MultimodalModel, Attention(WIDE, 3 * width))
    (found,) = training_flops(model, [part])
    assert found == 12 * tokens**2 * width + 4 * tokens * WIDE * 3 * width


def test_a_model_is_left_as_it_was(tiny: RunConfig) -> None:
    model = model_of(tiny, ["tiny-vqa", "tiny-box"], ("image",))
    before, stream = to_bytes(model.state()), torch.get_rng_state()
    parts = [examples("tiny-vqa", 4, ("image",)), examples("tiny-box", 4, ("image",))]
    found = training_flops(model, parts)
    assert all(p.grad is None for p in model.parameters())
    assert to_bytes(model.state()) == before
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(each > 0 for each in found)
    assert training_flops(model, parts[::-1]) == found[::-1]


def test_counting_is_done_once_for_parts_of_one_layout(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tiny, ["tiny-vqa", "tiny-box"], ("image", "text"))
    once = training_flops(model, [examples("tiny-vqa", 4, ("image",))])
    more = training_flops(model, [examples("tiny-vqa", 4, ("image", "text"))])
    assert more[0] > once[0]  # a token more is attended to
    monkeypatch.setattr(work, "FlopCounterMode", None)
    assert training_flops(model, [examples("tiny-vqa", 9, ("image",))]) == once
