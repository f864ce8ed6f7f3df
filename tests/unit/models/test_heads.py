"""Laws of every head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hffm_flower.data.captions import END, LONGEST, decode
from hffm_flower.models.captioning import CaptionHead, bleu
from hffm_flower.models.heads import HEADS, BoxHead, ClassificationHead, Head, box_iou
from hffm_flower.models.regression import ForecastHead, RegressionHead
from hffm_flower.models.retrieval import RetrievalHead
from hffm_flower.report import LOWEST_VALUE
from hffm_flower.tasks import TASKS

WIDTH, GRID, ANSWERS = 12, 9, 5
SIZES = {"box": 0, "caption": 6, "regression": 2, "forecast": 4, "retrieval": 10}
GALLERY = 7


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(5)


def make(kind: str) -> Head:
    return HEADS[kind](WIDTH, SIZES.get(kind, ANSWERS))


def targets(kind: str, count: int) -> Tensor:
    if kind == "box":
        return torch.rand(count, 4) * 0.4 + 0.3
    if kind == "caption":
        written = torch.randint(1, SIZES[kind] + 1, (count, LONGEST))
        lengths = torch.randint(1, LONGEST + 1, (count, 1))
        return written.masked_fill(torch.arange(LONGEST) >= lengths, END)
    if kind == "regression":
        return torch.randn(count, SIZES[kind])
    if kind == "forecast":  # of as many channels as there are tokens
        rows = torch.randn(count, 3 + SIZES[kind], GRID)
        rows[:, 1] = rows[:, 1].abs()
        return rows
    if kind == "retrieval":
        return torch.randn(count, GALLERY, SIZES[kind])
    return torch.randint(0, ANSWERS, (count,))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_loss_is_finite_and_reaches_every_parameter(kind: str, scale: float) -> None:
    head = make(kind)
    pooled = torch.randn(6, WIDTH) * scale
    own = torch.randn(6, GRID, WIDTH) * scale
    loss = head.loss(head(pooled, own), targets(kind, 6))
    assert loss.shape == ()
    assert loss.isfinite()
    torch.autograd.backward(loss)
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    if scale == 1.0:
        # Attention ignores a shift of all its keys, so only the key's bias has no gradient.
        still = {n for n, p in head.named_parameters()
                 if p.grad is not None and p.grad.abs().max() < 1e-7}  # fmt: skip
        assert still <= {"key.bias"}


@pytest.mark.parametrize("kind", HEADS)
def test_gradients_stay_in_the_head(kind: str) -> None:
    head, other = make(kind), make(kind)
    pooled, own = torch.randn(6, WIDTH), torch.randn(6, GRID, WIDTH)
    torch.autograd.backward(head.loss(head(pooled, own), targets(kind, 6)))
    assert all(p.grad is None for p in other.parameters())


@pytest.mark.parametrize("kind", HEADS)
def test_scores_are_counts_and_add_up(kind: str) -> None:
    head = make(kind)
    output = head(torch.randn(40, WIDTH), torch.randn(40, GRID, WIDTH)).detach()
    target = targets(kind, 40)
    cuts = (slice(0, 17), slice(17, 40))
    train = targets(kind, 30)
    for score in (head.score, lambda _, t: head.guess(train, t)):
        marks = score(output, target)
        if marks is None:
            assert kind in ("classification", "retrieval"), "their chance is exact"
            continue
        right, value = marks
        assert isinstance(right, int)
        assert 0 <= right <= 40
        assert LOWEST_VALUE * 40 <= value <= 40.0
        halves = [score(output[at], target[at]) for at in cuts]
        assert sum(h[0] for h in halves if h) == right
        assert sum(h[1] for h in halves if h) == pytest.approx(value, abs=1e-3)


LEARNABLE = {"classification": 40, "box": 60, "retrieval": 60, "caption": 60, "regression": 60,
             "forecast": 60}  # fmt: skip


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_learns_examples_by_heart_and_beats_the_guess(kind: str) -> None:
    head, target = make(kind), targets(kind, 12)
    pooled, own = torch.randn(12, WIDTH), torch.randn(12, GRID, WIDTH)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.02)
    for _ in range(LEARNABLE[kind]):
        optimizer.zero_grad()
        torch.autograd.backward(head.loss(head(pooled, own), target))
        optimizer.step()
    with torch.no_grad():
        right, value = head.score(head(pooled, own), target)
        guess = head.guess(target, target) or (12 / min(ANSWERS, GALLERY), 0.0)
    assert right > guess[0] + 2
    assert value > guess[1]


def test_classification_score_by_hand() -> None:
    head = ClassificationHead(WIDTH, 2)
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert head.score(logits, torch.tensor([1, 0, 0])) == (2, 2.0)
    uniform = head.loss(torch.zeros(3, 4), torch.tensor([0, 1, 2]))
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
    head = BoxHead(WIDTH, 0)
    truth = torch.tensor([[0.5, 0.5, 0.4, 0.4]] * 3)
    guess = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.19, 0.4], [0.1, 0.1, 0.1, 0.1]])
    right, value = head.score(guess, truth)
    assert right == 1
    assert value == pytest.approx(1.475, abs=1e-5)
    assert head.score(truth[:1], torch.tensor([[0.5, 0.5, 0.21, 0.4]]))[0] == 1
    assert float(head.loss(truth, truth)) == pytest.approx(0.0, abs=1e-5)


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


def test_an_equal_likeness_is_not_found() -> None:
    head = RetrievalHead(WIDTH, 10)
    same = torch.randn(1, 1, 10).expand(3, GALLERY, 10)
    assert head.score(torch.randn(3, 128), same) == (0, 0.0), "else a constant would find all"


def test_retrieval_counts_ranks_by_hand() -> None:
    head = RetrievalHead(WIDTH, 10)
    texts = torch.randn(2, GALLERY, 10)
    with torch.no_grad():
        places = head.text(head.text_norm(texts))
        assert head.score(places[:, 0], texts) == (2, 2.0)
        assert head.score(places[:, 3], texts)[0] == 0
        assert head.score(-places[:, 0], texts) == (0, 0.0), "last of seven"
        answer = head.answer(places[:1, 3], TASKS["emoji-retrieval"], texts[:1])
        assert isinstance(answer, np.ndarray)
        assert answer.argmax() == 3


def test_training_reads_the_right_text_only() -> None:
    head = RetrievalHead(WIDTH, 10)
    output, texts = torch.randn(4, 128), torch.randn(4, GALLERY, 10)
    assert torch.equal(head.loss(output, texts), head.loss(output, texts[:, :1]))
    assert float(head.loss(output[:1], texts[:1]).detach()) == 0.0, (
        "one example has nothing to tell apart"
    )


def test_a_caption_ends_at_its_first_end() -> None:
    head = CaptionHead(WIDTH, 6)
    target = torch.tensor([[3, 1, 0, 0, 0, 0, 0, 0]])
    output = head(torch.randn(1, WIDTH), torch.randn(1, GRID, WIDTH)).detach()
    padded = target.clone()
    padded[0, 4] = 5  # behind the end
    assert torch.equal(head.loss(output, target), head.loss(output, padded))
    assert decode([3, 1, 0, 5], list("abcdef")) == "c a"
    assert bleu([3, 1], [3, 1]) == 1.0
    assert bleu([], [3, 1]) == bleu([2], [3, 1]) == 0.0
    assert 0 < bleu([3, 1, 2], [3, 1, 4]) < 1


def test_the_guessed_caption_is_like_the_others() -> None:
    train = torch.tensor([[1, 2, 3, 0], [4, 5, 6, 0], [4, 5, 1, 0], [4, 5, 6, 0]])
    right, value = CaptionHead(WIDTH, 6).guess(train, train)
    assert right == 2
    assert 2 < value < 4


def test_quantities_are_near_within_half_a_deviation() -> None:
    head = RegressionHead(WIDTH, 2)
    target = torch.zeros(3, 2)
    output = torch.tensor([[0.4, -0.4], [0.4, 0.6], [0.0, 1e6]])
    right, value = head.score(output, target)
    assert right == 1
    assert value == pytest.approx(1 - 0.16 + 1 - 0.26 + LOWEST_VALUE)
    assert head.guess(torch.ones(5, 2), target)[1] == pytest.approx(0.0)
    answer = head.answer(torch.tensor([[0.5]]), TASKS["watch-rate"], None)
    mean, deviation = TASKS["watch-rate"].scale
    assert answer == pytest.approx(mean + deviation / 2)


def test_a_forecast_is_in_the_unit_of_its_window() -> None:
    head = ForecastHead(WIDTH, 2)
    target = torch.zeros(1, 5, 3)
    target[0, :3] = torch.tensor([[1.0], [2.0], [4.0]])  # mean, deviation, last sample
    target[0, 3:] = 3.0
    ones = torch.ones(1, 2, 3)
    assert head.score(ones, target) == (1, 1.0)
    assert float(head.loss(ones, target).detach()) == 0.0
    assert head.guess(target, target) == (0, 0.0), "the last sample is off by one"
    assert head.score(0 * ones, target)[0] == 0
    answer = head.answer(ones, TASKS["watch-forecast"], target[:, :3])
    assert isinstance(answer, np.ndarray)
    assert answer.tolist() == [[3.0] * 3] * 2
