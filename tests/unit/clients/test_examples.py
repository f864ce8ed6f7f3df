"""A device loads its own examples, of the modalities that it has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clients.examples import load_task
from hffm_flower.data import DATASETS, TASKS
from hffm_flower.errors import ConfigError
from hffm_flower.models.encoders import ENCODERS, Encoder, FeatureCache

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def encoders() -> dict[str, Encoder]:
    return {e.modality: e("random", 0, CPU) for e in ENCODERS.values()}


@pytest.mark.parametrize("task", TASKS)
def test_streams_are_those_of_the_modalities_held(
    task: str, encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    spec, cache = TASKS[task], FeatureCache(tmp_path)
    data = DATASETS[spec.dataset](task, train_per_answer=3, test_per_answer=3, seed=0)
    for modalities in {spec.required, (*spec.required, *spec.optional), tuple(ENCODER_MODALITIES)}:
        mine = load_task(
            task, data, split="test", indices=[4, 1, 4], encoders=encoders,
            modalities=modalities, cache=cache,
            finder=encoders[spec.target] if spec.target else None,
        )  # fmt: skip
        assert set(mine.inputs) == {s for m, s in spec.fused.items() if m in modalities}
        assert len(mine) == 3
        expected = data.targets("test", np.array([4, 1, 4]))
        if spec.target:
            names = data.items(spec.target, "test", expected[0])
            tokens = encoders[spec.target].encode(names)[spec.inputs[spec.target]]
            assert mine.targets.shape == (3, *expected.shape[1:], tokens.values.shape[2])
            of_first = tokens.values[0][tokens.mask[0]].mean(0)
            assert torch.allclose(mine.targets[0, 0], of_first, atol=5e-3), "kept as float16"
            expected = mine.targets.numpy()
        assert mine.targets.tolist() == expected.tolist()
        for stream, tokens in mine.inputs.items():
            modality = next(m for m, s in spec.inputs.items() if s == stream)
            shape = encoders[modality].streams[stream]
            assert tokens.values.shape == (3, shape.tokens, shape.width)
            assert torch.equal(tokens.values[0], tokens.values[2])
        assert mine.index(torch.tensor([1])).targets.tolist() == expected[1:2].tolist()


ENCODER_MODALITIES = sorted(e.modality for e in ENCODERS.values())


def test_lacking_a_required_modality_is_told(encoders: dict[str, Encoder], tmp_path: Path) -> None:
    data = DATASETS["watch"]("watch7", train_per_answer=3, test_per_answer=3, seed=0)
    with pytest.raises(ConfigError, match="'watch7' requires sensor; this device has image"):
        load_task(
            "watch7", data, split="train", indices=[0], encoders=encoders,
            modalities=["image"], cache=FeatureCache(tmp_path),
        )  # fmt: skip
