"""The seam between the model and what it answers: a head knows its loss and its score."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hffm_flower.tasks import TaskSpec

Answer = str | NDArray[np.float32]
Marks = tuple[int, float]
"""Right answers, and the sum of the finer measure, over examples."""


class Head(nn.Module, ABC):
    """Turns fused tokens into a task's answer.

    Args of every head: ``width``, D, and ``size``: how many answers, words, quantities or
    samples the task has, or how wide the tokens are that are to be found.
    """

    def __init__(self, width: int, size: int) -> None:
        del width, size
        super().__init__()

    @abstractmethod
    def forward(self, pooled_BD: Tensor, own_BTD: Tensor) -> Tensor:
        """Raw output, from the pooling token and the tokens of the task's last stream."""

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean loss over the batch, a scalar."""

    @abstractmethod
    def score(self, output: Tensor, target: Tensor) -> Marks:
        """Right answers, and the sum of the finer measure, over the batch; both add up."""

    def guess(self, train: Tensor, target: Tensor) -> Marks | None:
        """Score on ``target`` of the best answer that looks at no input.

        It knows the targets of training. None: the task's chance is exact.
        """
        del train, target
        return None

    def answer(self, output: Tensor, spec: TaskSpec, given: Tensor | None) -> Answer:
        """The answer to one example, in words or in numbers of the task's unit.

        Args:
            output: Raw output for it, ``[1, ...]``.
            spec: The task.
            given: What else is known: tokens to choose from, or the window's `frame`.
        """
        del spec, given
        numbers: NDArray[np.float32] = output[0].float().cpu().numpy()
        return numbers
