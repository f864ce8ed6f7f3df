"""The sound encoder in torch gives what the ONNX files give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hffm_flower.assets import asset_root
from hffm_flower.data.dataset import Item
from hffm_flower.data.digits import Digits
from hffm_flower.models.encoders.speech import (
    SAMPLES,
    MelFront,
    Speech,
    SpeechEmbedding,
    read_initialisers,
)

CPU = torch.device("cpu")


def resources() -> Path:
    return asset_root("speech-embedding") / "wakeword" / "resources"


def clips(count: int = 3) -> torch.Tensor:
    """A chirp, noise and near silence, in the range of int16."""
    time_s = torch.arange(SAMPLES) / 16_000
    noise = torch.randn(SAMPLES, generator=torch.Generator().manual_seed(0))
    chirp = torch.sin(2 * torch.pi * (200 + 1000 * time_s) * time_s)
    return torch.stack([8000 * chirp, 3000 * noise, 0.5 * noise])[:count]


def speech() -> torch.Tensor:
    """Spoken digits, and noise, in the range of int16."""
    data = Digits("digits10", train_per_answer=1, test_per_answer=1, seed=1)
    spoken = [torch.from_numpy(item.load()) for item in data.items("audio", "test", range(4))]
    return torch.cat([32768 * torch.stack(spoken), clips()[1:2]])


def test_front_and_embedding_equal_onnxruntime() -> None:
    runtime = pytest.importorskip("onnxruntime")
    wave = speech()
    front = runtime.InferenceSession(str(resources() / "melspectrogram.onnx"))
    embedding = runtime.InferenceSession(str(resources() / "embedding_model.onnx"))
    mel = MelFront(read_initialisers("melspectrogram.onnx"))(wave)
    network = SpeechEmbedding()
    network.fill(read_initialisers("embedding_model.onnx"))
    with torch.inference_mode():
        tokens = network.eval()(mel)
    assert tokens.shape == (5, 9, 96)
    for row in range(5):
        (theirs,) = front.run(None, {front.get_inputs()[0].name: wave[row : row + 1].numpy()})
        theirs = theirs.reshape(-1, 32) / 10 + 2
        assert np.abs(theirs - mel[row].numpy()).max() <= 2e-5
        windows = np.stack([theirs[8 * t : 8 * t + 76] for t in range(9)])[..., None]
        (wanted,) = embedding.run(None, {embedding.get_inputs()[0].name: windows})
        scale = max(1.0, np.abs(wanted).max())
        assert np.abs(wanted.reshape(9, 96) - tokens[row].numpy()).max() <= 2e-5 * scale


def test_a_clip_has_its_own_bits_whatever_its_company() -> None:
    encoder = Speech("pretrained", 0, CPU)
    items = [Item(str(i), (clips()[i % 3] / 32768 * (1 + i)).numpy) for i in range(11)]
    together = encoder.encode(items)["audio"]
    alone = encoder.encode(items[9:10])["audio"]
    assert torch.equal(together.values[9], alone.values[0])
    assert together.mask.all()


def test_random_weights_follow_the_seed() -> None:
    item = Item("x", (clips(1)[0] / 32768).numpy)
    one, same, other = (
        Speech("random", seed, CPU).encode([item])["audio"].values for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    prints = {Speech("random", s, CPU).fingerprint() for s in (1, 2)}
    assert len(prints | {Speech("pretrained", s, CPU).fingerprint() for s in (1, 2)}) == 3


@pytest.mark.parametrize("bad", [np.zeros(100, np.float32), "text"])
def test_what_is_no_clip_is_refused(bad: np.ndarray | str) -> None:
    with pytest.raises(TypeError, match=r"reads clips \[24000\]"):
        Speech("pretrained", 0, CPU).encode([Item("x", lambda: bad)])
