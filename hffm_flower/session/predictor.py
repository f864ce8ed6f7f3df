"""A trained model that answers: raw inputs in, answers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clients.examples import mean_tokens
from clients.resident import encoder_of, prefix_of
from hffm_flower.config import RunConfig
from hffm_flower.data.dataset import Item
from hffm_flower.data.watch import frame
from hffm_flower.errors import ConfigError, one_of
from hffm_flower.models.encoders.encoder import Encoder, Tokens
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.models.parts import streams_of
from hffm_flower.models.prefix import Example
from hffm_flower.tasks import TASKS

RawInput = str | NDArray[np.float32] | Image.Image
Prediction = str | tuple[float, ...] | tuple[str, ...] | NDArray[np.float32]


class Predictor:
    """A trained model with its encoders: raw inputs in, answers out.

    Attributes:
        tasks: Tasks that it answers.
        modalities: Modalities that it reads.
    """

    def __init__(self, config: RunConfig, model: MultimodalModel, on: torch.device) -> None:
        self.config, self.model, self.on = config, model, on
        self.tasks = model.tasks
        self.modalities = tuple(sorted(model.modalities))

    @torch.inference_mode()
    def scores(self, task: str, **inputs: RawInput) -> NDArray[np.float32]:
        """Raw output of the task's head for one example, e.g. logits, or a box (cx, cy, w, h).

        Args:
            task: One of ``tasks``.
            **inputs: Modality -> raw input: ``image`` a PIL image, ``text`` a string,
                ``sensor`` a float32 array ``[time, channel]``. Optional ones may be left out.

        Raises:
            ConfigError: The task or a modality is unknown here, or a required one is absent.
        """
        out: NDArray[np.float32] = self._output(task, inputs)[0].float().cpu().numpy()
        return out

    @torch.inference_mode()
    def predict(self, task: str, **inputs: RawInput | Sequence[str]) -> Prediction:
        """The answer: a class or a caption in words, a box (cx, cy, w, h) as shares of the picture.

        Quantities come in their unit, as `TaskSpec.parts` lists them; a forecast as samples
        ``[time, channel]`` in the unit of the window. Of a modality that is to be found
        (`TaskSpec.target`), give the candidates; they come back ranked, the likeliest first.

        Raises:
            ConfigError: As `scores`; or there are no candidates.
        """
        spec, head = TASKS[one_of("task", task, self.tasks)], self.model.head(task)
        given: Tensor | None = None
        candidates: list[str] = []
        if spec.target:
            candidates = _candidates(spec.target, inputs.pop(spec.target, None))
            encoder = encoder_of(self.config, spec.target, self.on, whole=True)
            stream = spec.inputs[spec.target]
            tokens = self._encoded(spec.target, stream, encoder, candidates)
            given = mean_tokens(tokens)[None]
        output = self._output(task, inputs)
        if spec.horizon:
            window = np.asarray(inputs["sensor"], dtype=np.float32)
            given = torch.from_numpy(frame(window)).to(self.on)[None]
        answer = head.answer(output.float(), spec, given)
        if isinstance(answer, str):
            return answer
        if spec.target:
            return tuple(candidates[i] for i in np.argsort(-answer, kind="stable"))
        return answer if answer.ndim > 1 else tuple(float(v) for v in answer)

    def _output(self, task: str, inputs: Mapping[str, object]) -> Tensor:
        """Raw output of the task's head for one example ``[1, ...]``."""
        spec = TASKS[one_of("task", task, self.tasks)]
        for modality in inputs:
            one_of(f"modality of {task}", modality, spec.fused)
        absent = [m for m in spec.required if m in spec.fused and m not in inputs]
        if absent:
            raise ConfigError(f"task {task!r} needs {', '.join(absent)}")
        tokens = {
            s: self._encoded(m, s, encoder_of(self.config, m, self.on), [inputs[m]])
            for s, m in streams_of(task, self.model.modalities).items()
            if m in inputs
        }
        if (prefix := prefix_of(self.config, task, tuple(inputs), self.on)) is not None:
            read = Example({m: _given(raw) for m, raw in inputs.items()})
            tokens = {s: t.to(self.on) for s, t in prefix.encode([read]).items()}
        self.model.eval()
        output: Tensor = self.model(task, tokens)
        return output

    def _encoded(
        self, modality: str, stream: str, encoder: Encoder, raw: Sequence[object]
    ) -> Tokens:
        """Tokens of raw inputs of one modality.

        Raises:
            ConfigError: They cannot be read.
        """
        try:
            tokens = encoder.encode([_given(each) for each in raw])[stream].to(self.on)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ConfigError(f"this {modality} cannot be read: {error}") from error
        if not torch.isfinite(tokens.values).all():
            raise ConfigError(f"this {modality} holds values that are not finite")
        return tokens


def _given(raw: object) -> Item:
    """An input that is there already; the encoder refuses what is none."""
    return Item("", lambda: cast(RawInput, raw))


def _candidates(modality: str, given: object) -> list[str]:
    """What is to be ranked.

    Raises:
        ConfigError: It is no list of texts.
    """
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise ConfigError(f"{modality} must be the candidates to rank, a list, not {given!r}")
    return list(given)
