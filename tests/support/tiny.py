"""Tiny parts for whole runs in about a second: encoders, a backbone, a data set, tasks.

Three modalities: an image-like array [4, 6], a text, a sensor-like array [5, 3]. All of an
example follows from (task, seed, split, position), and all of its inputs tell its class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clients import resident, shares
from clients.examples import TaskData
from clients.spec import model_spec
from hffm_flower.config import RunConfig
from hffm_flower.data import DATASETS
from hffm_flower.data.dataset import Indices, Item, Split, no_modality, text_item
from hffm_flower.models.backbones import BACKBONES, Precision, Weights, attend
from hffm_flower.models.encoders import ENCODERS, Encoder
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.models.parts import ModelSpec
from hffm_flower.modules import ModuleKey
from hffm_flower.seeding import generator, stream_seed
from hffm_flower.tasks import TASKS, TaskSpec
from tests.support.tiny_encoders import WIDTH, DeepImage, TinyImage, TinySensor, TinyText

ANSWERS = ("north", "east", "south", "west")
OWNERS = 8
"""Natural owners of the classification examples, so that no Dirichlet split is drawn."""


class TinyFusion:
    """One frozen attention layer of width 8 with a trainable adapter behind it."""

    assets: ClassVar[tuple[str, ...]] = ()
    width: ClassVar[int] = WIDTH
    native_streams: ClassVar[Mapping[str, str]] = {"text": "tiny-text"}
    layers: ClassVar[tuple[str, ...]] = ("tiny.0",)
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)
    trims: ClassVar[bool] = False
    projections: ClassVar[Mapping[str, tuple[int, int]]] = {
        "query": (WIDTH, WIDTH),
        "value": (WIDTH, WIDTH),
    }
    loaded: ClassVar[list[tuple[str, int]]] = []

    @staticmethod
    def blocks() -> Mapping[ModuleKey, Callable[[], nn.Module]]:
        """None."""
        return {}

    @staticmethod
    def fingerprint(weights: Weights, seed: int) -> str:
        """Weights and seed."""
        return f"{weights} {seed}"

    @staticmethod
    def prefix(
        frozen: nn.Module, x_BTD: Tensor, mask_BT: Tensor, count: int, *, recompute: bool = False
    ) -> Tensor:
        """The tokens: the only layer is adapted."""
        return x_BTD

    @staticmethod
    def load_frozen(weights: Weights, seed: int, precision: Precision = "fp32") -> nn.Module:
        """Queries, keys and values."""
        TinyFusion.loaded.append((weights, seed))
        rng = torch.Generator().manual_seed(stream_seed(seed, weights))
        layer = nn.Linear(WIDTH, 3 * WIDTH)
        nn.init.normal_(layer.weight, std=0.3, generator=rng)
        nn.init.zeros_(layer.bias)
        return layer.requires_grad_(False)

    @staticmethod
    def fuse(
        frozen: nn.Module, trained: Sequence[Any], x_BTD: Tensor, mask_BT: Tensor, *,
        recompute: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Attend from token 0."""
        (tuning,) = trained
        q, k, v = frozen(x_BTD).chunk(3, -1)
        q, first = q[:, :1], x_BTD[:, :1]
        q = q if (more := tuning.added("query", first)) is None else q + more
        v = v if (more := tuning.added("value", x_BTD)) is None else v + more
        fused = first + tuning.attention(attend(q, k, v, mask_BT, heads=2))
        return tuning.joined(fused, torch.zeros_like(fused))[:, 0], x_BTD


class TinyData:
    """Examples drawn by (task, seed, split); class, box and inputs agree."""

    assets: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, task: str, *, train_per_answer: int, test_per_answer: int, seed: int
    ) -> None:
        self._task = task
        self._classes = max(1, len(TASKS[task].answers))
        per = {"train": train_per_answer, "test": test_per_answer}
        self._labels = {
            split: generator(seed, "tiny", task, split).permutation(
                np.arange(count * self._classes) % self._classes
            )
            for split, count in per.items()
        }
        self._boxes = {
            split: generator(seed, "tiny", task, split, "box")
            .uniform(0.3, 0.7, (len(labels), 4))
            .astype(np.float32)
            for split, labels in self._labels.items()
        }
        self._seed = seed

    def labels(self, split: Split) -> NDArray[np.int64]:
        """Classes [N]."""
        return self._labels[split].astype(np.int64)

    def groups(self, split: Split) -> NDArray[np.int64] | None:
        """Owners [N]."""
        return np.arange(len(self._labels[split]), dtype=np.int64) % OWNERS

    def targets(self, split: Split, indices: Indices) -> NDArray[np.int64] | NDArray[np.float32]:
        """Classes [n], or boxes [n, 4]."""
        at = np.asarray(indices, dtype=np.int64)
        return self.labels(split)[at] if TASKS[self._task].answers else self._boxes[split][at]

    def items(self, modality: str, split: Split, indices: Indices) -> list[Item]:
        """Inputs, noisy and different for each example."""
        if modality not in TASKS[self._task].inputs:
            raise no_modality(self._task, modality, " and ".join(TASKS[self._task].inputs))
        return [self._item(modality, split, int(i)) for i in indices]

    def _item(self, modality: str, split: Split, index: int) -> Item:
        label = int(self._labels[split][index])
        if modality == "text":
            return text_item(("go", "go far", "go very far", "far")[label % 4])
        shape = (4, 6) if modality == "image" else (5, 3)
        rng = generator(self._seed, self._task, split, index, modality)
        array = (0.4 * rng.standard_normal(shape)).astype(np.float32)
        if TASKS[self._task].answers:
            array[:, label % shape[1]] += 1.0
        else:
            array[:, :4] += 4 * (self._boxes[split][index] - 0.5)
        return Item(hashlib.sha256(array.tobytes()).hexdigest(), array.copy)


TINY_TASKS = {
    "tiny-vqa": TaskSpec(
        dataset="tiny",
        head="classification",
        inputs={"image": "image", "text": "text"},
        required=("image",),
        optional=("text",),
        answers=ANSWERS,
        chance=0.25,
    ),
    "tiny-move": TaskSpec(
        dataset="tiny",
        head="classification",
        inputs={"sensor": "sensor"},
        required=("sensor",),
        optional=(),
        answers=ANSWERS[:2],
        chance=0.5,
    ),
    "tiny-box": TaskSpec(
        dataset="tiny",
        head="box",
        inputs={"image": "image-grid"},
        required=("image",),
        optional=(),
        answers=(),
        chance=0.0,
    ),
}
TINY_ENCODERS: dict[str, type[Encoder]] = {
    "tiny-image": TinyImage,
    "deep-image": DeepImage,
    "tiny-text": TinyText,
    "tiny-sensor": TinySensor,
}


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the tiny parts into the registries, which are the same dicts wherever imported."""
    for registry, entries in (
        (ENCODERS, TINY_ENCODERS),
        (BACKBONES, {"tiny": TinyFusion()}),
        (DATASETS, {"tiny": TinyData}),
        (TASKS, TINY_TASKS),
    ):
        for name, entry in cast(Mapping[str, object], entries).items():
            monkeypatch.setitem(cast(dict[str, object], registry), name, entry)


def forget() -> None:
    """Empty what a device process keeps between messages."""
    for kept in (
        shares.drawn_partition, shares.opened, resident._encoder, resident._frozen,
        resident.own_data, resident._profiles,
    ):  # fmt: skip
        kept.cache_clear()
    resident._examples.clear()
    TinyImage.made.clear()
    TinyFusion.loaded.clear()


def settings(root: Path, **changes: object) -> RunConfig:
    """A run of the tiny parts below ``root``."""
    base: dict[str, object] = {
        "rounds": 2,
        "seed": 3,  # device 0 is idle, device 3 lacks the sensor, device 2 the text
        "tree__devices": 6,
        "tree__edges": 2,
        "data__tasks": "tiny-vqa tiny-move tiny-box",
        "data__train_per_answer": 16,
        "data__test_per_answer": 25,
        "model__backbone": "tiny",
        "model__encoders": "image=tiny-image text=tiny-text sensor=tiny-sensor",
        "model__adapter_rank": 2,
        "train__local_epochs": 1,
        "train__batch_size": 8,
        "train__device": "cpu",
        "train__learning_rate": 0.02,
        "server__deadline_s": 20.0,
        "paths__cache": str(root / "cache"),
        "paths__state": str(root / "state"),
    }
    return RunConfig().with_values(**{**base, **changes})


def spec_of(config: RunConfig) -> ModelSpec:
    """The model of a run."""
    return model_spec(config)


def model_of(config: RunConfig, tasks: Sequence[str], modalities: Iterable[str]) -> MultimodalModel:
    """A model outside any device."""
    frozen = TinyFusion.load_frozen(config.model.weights, 0)
    return MultimodalModel(spec_of(config), tasks, tuple(modalities), frozen)


def examples(task: str, count: int, modalities: Iterable[str], *, seed: int = 0) -> TaskData:
    """The first ``count`` training examples of a tiny task, encoded."""
    data = TinyData(task, train_per_answer=count, test_per_answer=1, seed=seed)
    rows, held = range(count), set(modalities)
    of = {e.modality: e for n, e in TINY_ENCODERS.items() if n != "deep-image"}
    inputs = {
        s: of[m]("random", 0, torch.device("cpu")).encode(data.items(m, "train", rows))[s]
        for m, s in TASKS[task].inputs.items()
        if m in held
    }
    return TaskData(task, inputs, torch.from_numpy(data.targets("train", rows)))
