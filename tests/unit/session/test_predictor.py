"""Answers of every head, in words and units; of an untrained model, so their form alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clients.resident import frozen_layers
from clients.spec import model_spec
from hffm_flower.config import RunConfig
from hffm_flower.data.watch import frame
from hffm_flower.errors import ConfigError
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.models.parts import module_keys
from hffm_flower.session.predictor import Predictor
from hffm_flower.tasks import TASKS

TASKS_HERE = ("easyvqa-box", "emoji-retrieval", "emoji-caption", "watch-rate", "watch-forecast")
PICTURE = Image.new("RGB", (96, 96), "white")
WINDOW = np.random.default_rng(0).normal(size=(150, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> Predictor:
    config = RunConfig().with_values(
        model__backbone="small", model__weights="random", train__device="cpu",
        data__tasks=" ".join(TASKS_HERE),
    )  # fmt: skip
    cpu = torch.device("cpu")
    made = MultimodalModel(
        model_spec(config), TASKS_HERE, ("image", "text", "sensor"), frozen_layers(config, cpu)
    )
    return Predictor(config, made, cpu)


def test_a_box_is_four_numbers(model: Predictor) -> None:
    box = model.predict("easyvqa-box", image=PICTURE)
    assert isinstance(box, tuple)
    assert len(box) == 4


def test_a_caption_is_words_of_the_task(model: Predictor) -> None:
    caption = model.predict("emoji-caption", image=PICTURE)
    assert isinstance(caption, str)
    assert set(caption.split()) <= set(TASKS["emoji-caption"].parts)


def test_a_quantity_is_in_its_unit(model: Predictor) -> None:
    mean, deviation = TASKS["watch-rate"].scale
    found = model.predict("watch-rate", sensor=WINDOW)
    assert isinstance(found, tuple)
    assert len(found) == 1
    assert found[0] == pytest.approx(
        mean + deviation * model.scores("watch-rate", sensor=WINDOW)[0]
    )


def test_a_forecast_is_samples_in_the_windows_unit(model: Predictor) -> None:
    ahead = model.predict("watch-forecast", sensor=100 + 7 * WINDOW)
    assert isinstance(ahead, np.ndarray)
    assert ahead.shape == (TASKS["watch-forecast"].horizon, 6)
    mean, deviation, _ = frame(WINDOW)
    raw = model.scores("watch-forecast", sensor=WINDOW)
    assert ahead == pytest.approx(100 + 7 * (mean + deviation * raw), rel=1e-3)


def test_candidates_come_back_ranked(model: Predictor) -> None:
    names = ["a red apple", "a house", "a red apple", "someone running"]
    ranked = model.predict("emoji-retrieval", image=PICTURE, text=names)
    assert isinstance(ranked, tuple)
    assert sorted(map(str, ranked)) == sorted(names)
    again = model.predict("emoji-retrieval", image=PICTURE, text=names[::-1])
    assert again == ranked, "whatever the order in which they are given"
    first = list(map(str, ranked)).index("a red apple")
    assert ranked[first + 1] == "a red apple", "equal texts are equally likely"


@pytest.mark.parametrize("candidates", ["one text", [], None, 7])
def test_what_is_to_be_found_needs_candidates(model: Predictor, candidates: Any) -> None:
    with pytest.raises(ConfigError, match="text must be the candidates to rank, a list, not"):
        model.predict("emoji-retrieval", image=PICTURE, text=candidates)


def test_other_windows_are_refused(model: Predictor) -> None:
    with pytest.raises(ConfigError, match="this sensor cannot be read"):
        model.predict("watch-forecast", sensor=WINDOW[:90])
    with pytest.raises(ConfigError, match="'watch-forecast' needs sensor"):
        model.predict("watch-forecast")


def test_what_the_model_was_trained_without_is_refused() -> None:
    tasks = ("emojivqa10", "emoji-retrieval")
    config = RunConfig().with_values(
        model__backbone="small", model__weights="random", train__device="cpu",
        data__tasks=" ".join(tasks),
    )  # fmt: skip
    cpu = torch.device("cpu")
    frozen = frozen_layers(config, cpu)
    seeing = Predictor(config, MultimodalModel(model_spec(config), tasks, ("image",), frozen), cpu)
    assert seeing.predict("emojivqa10", image=PICTURE) in TASKS["emojivqa10"].answers
    with pytest.raises(ConfigError, match=r"'emojivqa10' from image and text: .* without text"):
        seeing.predict("emojivqa10", image=PICTURE, text="is it food?")
    spec = model_spec(config)
    keys = module_keys(tasks, ("image",), spec)
    both = MultimodalModel(spec, tasks, ("image", "text"), frozen, keys=keys)
    with pytest.raises(ConfigError, match="without projector/text"):
        Predictor(config, both, cpu).predict("emojivqa10", image=PICTURE, text="is it food?")
