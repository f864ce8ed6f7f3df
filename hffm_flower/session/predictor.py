"""A trained model that answers: raw inputs in, answers out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
from hffm_flower.models.encoders.encoder import Tokens
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.models.parts import streams_of, task_modules
from hffm_flower.models.prefix import Example
from hffm_flower.modules import ModuleKind
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
            items = [_given(each) for each in candidates]
            found = self._finite(spec.target, lambda: encoder.encode(items))
            given = mean_tokens(found[spec.inputs[spec.target]])[None]
        output = self._output(task, inputs)
        if spec.horizon:
            (modality,) = spec.fused
            window = np.asarray(inputs[modality], dtype=np.float32)
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
        self._check_read(task, inputs)
        read = {m: _given(raw) for m, raw in inputs.items()}
        tokens: dict[str, Tokens] = {}
        if (prefix := prefix_of(self.config, task, tuple(inputs), self.on)) is not None:
            tokens = self._finite(" and ".join(read), lambda: prefix.encode([Example(read)]))
        else:
            for stream, modality in streams_of(task, read).items():
                encode = encoder_of(self.config, modality, self.on).encode
                found = self._finite(modality, partial(encode, [read[modality]]))
                tokens[stream] = found[stream]
        self.model.eval()
        output: Tensor = self.model(task, tokens)
        return output

    def _check_read(self, task: str, inputs: Mapping[str, object]) -> None:
        """Refuse inputs for which this model has not been trained.

        Raises:
            ConfigError: It lacks a modality, or a module that such an example passes.
        """
        model = self.model
        lacking = [m for m in inputs if m not in model.modalities]
        if not lacking and not model.spec.whole:
            experts = [int(k.name) for k in model.keys if k.kind is ModuleKind.EXPERT]
            needed = task_modules(task, tuple(inputs), model.spec, experts)
            lacking = [str(key) for key in needed if key not in model.keys]
        if lacking:
            raise ConfigError(
                f"this model does not answer task {task!r} from {' and '.join(sorted(inputs))}: it "
                f"was trained without {', '.join(lacking)}"
            )

    def _finite(self, what: str, encode: Callable[[], Mapping[str, Tokens]]) -> dict[str, Tokens]:
        """Streams of encoded inputs, where the model is.

        Raises:
            ConfigError: They cannot be read.
        """
        try:
            found = {stream: tokens.to(self.on) for stream, tokens in encode().items()}
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ConfigError(f"this {what} cannot be read: {error}") from error
        if not all(torch.isfinite(tokens.values).all() for tokens in found.values()):
            raise ConfigError(f"this {what} holds values that are not finite")
        return found


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
