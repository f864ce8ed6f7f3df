"""Laws of every head."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from hffm_flower.models.heads import HEADS, BoxHead, ClassificationHead, Head, box_iou

WIDTH, GRID, ANSWERS = 12, 9, 5


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(5)


def make(kind: str) -> tuple[Head, nn.Module]:
    head = HEADS[kind](WIDTH, 0 if kind == "box" else ANSWERS)
    return head, cast(nn.Module, head)


def targets(kind: str, count: int) -> Tensor:
    if kind == "box":
        return torch.rand(count, 4) * 0.4 + 0.3
    return torch.randint(0, ANSWERS, (count,))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_loss_is_finite_and_reaches_every_parameter(kind: str, scale: float) -> None:
    head, module = make(kind)
    pooled = torch.randn(6, WIDTH) * scale
    own = torch.randn(6, GRID, WIDTH) * scale
    loss = head.loss(head(pooled, own), targets(kind, 6))
    assert loss.shape == ()
    assert loss.isfinite()
    torch.autograd.backward(loss)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    if scale == 1.0:
        # Attention ignores a shift of all its keys, so only the key's bias has no gradient.
        still = {n for n, p in module.named_parameters()
                 if p.grad is not None and p.grad.abs().max() < 1e-7}  # fmt: skip
        assert still <= {"key.bias"}


@pytest.mark.parametrize("kind", HEADS)
def test_gradients_stay_in_the_head(kind: str) -> None:
    head, _ = make(kind)
    _, other = make(kind)
    pooled, own = torch.randn(6, WIDTH), torch.randn(6, GRID, WIDTH)
    torch.autograd.backward(head.loss(head(pooled, own), targets(kind, 6)))
    assert all(p.grad is None for p in other.parameters())


@pytest.mark.parametrize("kind", HEADS)
def test_scores_are_counts_and_add_up(kind: str) -> None:
    head, _ = make(kind)
    output = head(torch.randn(40, WIDTH), torch.randn(40, GRID, WIDTH)).detach()
    target = targets(kind, 40)
    right, value = head.score(output, target)
    assert isinstance(right, int)
    assert 0 <= right <= 40
    assert 0.0 <= value <= 40.0
    halves = [head.score(output[at], target[at]) for at in (slice(0, 17), slice(17, 40))]
    assert sum(r for r, _ in halves) == right
    assert sum(v for _, v in halves) == pytest.approx(value, abs=1e-4)


def test_classification_score_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert ClassificationHead.score(logits, torch.tensor([1, 0, 0])) == (2, 2.0)
    uniform = ClassificationHead.loss(torch.zeros(3, 4), torch.tensor([0, 1, 2]))
    assert float(uniform) == pytest.approx(1.3862944)  # log 4


@pytest.mark.parametrize(
    ("a", "b", "iou"),
    [
        ((0.5, 0.5, 0.2, 0.4), (0.5, 0.5, 0.2, 0.4), 1.0),  # identical
        ((0.2, 0.2, 0.2, 0.2), (0.8, 0.8, 0.2, 0.2), 0.0),  # disjoint in both directions
        ((0.2, 0.5, 0.2, 0.2), (0.8, 0.5, 0.2, 0.2), 0.0),  # disjoint in one
        ((0.25, 0.5, 0.5, 1.0), (0.75, 0.5, 0.5, 1.0), 0.0),  # touching
        ((0.4, 0.5, 0.4, 0.4), (0.6, 0.5, 0.4, 0.4), 1 / 3),  # half over half
        ((0.5, 0.5, 1.0, 1.0), (0.5, 0.5, 0.5, 0.5), 0.25),  # one in the other
        ((0.5, 0.5, 0.0, 0.0), (0.5, 0.5, 0.0, 0.0), 0.0),  # nothing in nothing
    ],
)
def test_iou_by_hand(a: tuple[float, ...], b: tuple[float, ...], iou: float) -> None:
    left, right = torch.tensor([a]), torch.tensor([b])
    assert float(box_iou(left, right)) == pytest.approx(iou, abs=1e-5)
    assert float(box_iou(right, left)) == pytest.approx(iou, abs=1e-5)


def test_box_score_counts_more_than_half() -> None:
    truth = torch.tensor([[0.5, 0.5, 0.4, 0.4]] * 3)
    guess = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.19, 0.4], [0.1, 0.1, 0.1, 0.1]])
    right, value = BoxHead.score(guess, truth)
    assert right == 1
    assert value == pytest.approx(1.475, abs=1e-5)
    assert BoxHead.score(truth[:1], torch.tensor([[0.5, 0.5, 0.21, 0.4]]))[0] == 1
    assert float(BoxHead.loss(truth, truth)) == pytest.approx(0.0, abs=1e-5)


def test_a_box_points_where_attention_is() -> None:
    head = BoxHead(WIDTH, 0)
    nn.init.eye_(head.key.weight)
    nn.init.eye_(head.query.weight)
    for bias in (head.key.bias, head.query.bias, head.out.bias):
        nn.init.zeros_(bias)
    nn.init.zeros_(head.out.weight)
    pooled = torch.zeros(1, WIDTH)
    pooled[0, 0] = 100.0
    own = torch.zeros(1, GRID, WIDTH)
    own[0, 5, 0] = 100.0  # row 1, column 2 of 3 x 3
    assert head(pooled, own)[0].tolist() == pytest.approx([2.5 / 3, 1.5 / 3, 0.5, 0.5], abs=1e-5)


def test_boxes_have_sizes_between_0_and_1_and_centres_near_the_grid() -> None:
    head = BoxHead(WIDTH, 0)
    out = head(torch.randn(50, WIDTH) * 30, torch.randn(50, GRID, WIDTH) * 30)
    assert out.shape == (50, 4)
    assert ((out[:, 2:] >= 0) & (out[:, 2:] <= 1)).all()
    assert ((out[:, :2] >= -0.5 / 3) & (out[:, :2] <= 1 + 0.5 / 3)).all()
