"""Captions: a small autoregressive decoder over the words of a task.

Shape suffixes: B batch, L words, T image tokens, D width, K decoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hffm_flower.data.captions import END, LONGEST, decode, until_end
from hffm_flower.models.head import Answer, Head, Marks
from hffm_flower.tasks import TaskSpec

DECODER: Final = 128
GUESSES: Final = 32


class CaptionHead(Head):
    """A GRU that starts from the pooling token and attends to the image tokens.

    It is taught with the words of the caption (teacher forcing) and answers greedily. Targets
    are int64 ``[B, L]``, see `hffm_flower.data.captions`. Scored by exact matches and by the
    BLEU of each sentence, of n-grams up to its length (sacreBLEU, Post 2018, arXiv
    1804.08771), which adds up.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__(width, size)
        self.start = nn.Linear(width, DECODER)
        self.memory = nn.Linear(width, DECODER)
        self.words = nn.Embedding(size + 1, DECODER)
        self.step = nn.GRU(DECODER, DECODER, batch_first=True)
        self.out = nn.Linear(2 * DECODER, size + 1)

    def forward(self, pooled_BD: Tensor, own_BTD: Tensor) -> Tensor:
        """Where the decoder starts and what it attends to ``[B, 1 + T, K]``."""
        return torch.cat([self.start(pooled_BD)[:, None], self.memory(own_BTD)], 1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of each next word, up to the first end."""
        before = F.pad(target, (1, 0), value=END)[:, :-1]
        logits, _ = self._next(output, before, output[:, 0].tanh())
        ended = (target == END).long().cumsum(1) > 1
        return F.cross_entropy(logits.flatten(0, 1), target.masked_fill(ended, -1).flatten(),
                               ignore_index=-1)  # fmt: skip

    def score(self, output: Tensor, target: Tensor) -> Marks:
        """Captions that match exactly, and the sum of their BLEU in 0..1."""
        return _marks(self.write(output), target)

    def guess(self, train: Tensor, target: Tensor) -> Marks:
        """The caption that is likest to the others, of the first `GUESSES` of training."""
        some = train[:GUESSES]
        _, best = max((_marks(c.expand_as(some), some)[::-1], c.tolist()) for c in some)
        return _marks(torch.tensor(best).expand(len(target), -1), target)

    def answer(self, output: Tensor, spec: TaskSpec, given: Tensor | None) -> Answer:
        """The caption in words."""
        return decode(self.write(output)[0].tolist(), spec.parts)

    def write(self, output: Tensor) -> Tensor:
        """Captions ``[B, L]``, each next word the likeliest."""
        state = output[:, 0].tanh()
        word = torch.full((len(output), 1), END, device=output.device)
        written = []
        for _ in range(LONGEST):
            logits, state = self._next(output, word, state)
            word = logits.argmax(2)
            written.append(word)
        return torch.cat(written, 1)

    def _next(self, output: Tensor, words_BL: Tensor, state_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, L, words]`` behind each word, and the last state."""
        states_BLK, last = self.step(self.words(words_BL), state_BK[None].contiguous())
        memory_BTK = output[:, 1:]
        likeness_BLT = states_BLK @ memory_BTK.transpose(1, 2) / math.sqrt(DECODER)
        seen_BLK = likeness_BLT.softmax(2) @ memory_BTK
        logits: Tensor = self.out(torch.cat([states_BLK, seen_BLK], 2))
        return logits, last[0]


def _marks(written: Tensor, target: Tensor) -> Marks:
    pairs = [
        (until_end(w), until_end(t)) for w, t in zip(written.tolist(), target.tolist(), strict=True)
    ]
    return sum(w == t for w, t in pairs), sum(bleu(w, t) for w, t in pairs)


def bleu(written: Sequence[int], wanted: Sequence[int]) -> float:
    """BLEU of one caption in 0..1, on the words' numbers."""
    hypothesis, reference = (" ".join(map(str, each)) for each in (written, wanted))
    score: float = _bleu().sentence_score(hypothesis, [reference]).score
    return min(1.0, score / 100)


@cache
def _bleu() -> Any:
    """The metric; sacreBLEU is loaded when the first caption is scored."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True, tokenize="none")
