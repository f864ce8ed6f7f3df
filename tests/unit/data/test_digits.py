"""Synthetic digits: the same bits in any order and process, voices disjoint."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from hffm_flower.data.dataset import Split
from hffm_flower.data.digits import ACCENTS, SAMPLES, VARIANTS, Clip, Digits
from hffm_flower.data.espeak import Espeak
from hffm_flower.errors import AssetError, ConfigError

CLIP = Clip("seven", "en-us+f1", 150, 50, -3.0, 0.5, 10.0, 7)

HASHES = """
import hashlib, json
from hffm_flower.data.digits import ACCENTS, VARIANTS
from hffm_flower.data.espeak import Espeak
say = Espeak.shared().say
names = [f"{ACCENTS[i % len(ACCENTS)]}+{v}" for i, v in enumerate(VARIANTS)]
wave = {n: say("seven", voice=n, rate=150, pitch=50)[0].tobytes() for n in names}
print(json.dumps({n: hashlib.sha256(w).hexdigest() for n, w in wave.items()}))
"""


def digits(seed: int = 1) -> Digits:
    return Digits("digits10", train_per_answer=6, test_per_answer=3, seed=seed)


def test_every_voice_says_the_same_in_another_process() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", HASHES], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert len(set(json.loads(runs[0]).values())) == len(VARIANTS)


def test_a_clip_does_not_depend_on_what_was_said_before() -> None:
    first = CLIP.wave()
    Clip("nine", "en-gb-scotland+m3", 190, 30, 0.0, 0.1, 5.0, 8).wave()
    assert first.tobytes() == CLIP.wave().tobytes()
    assert first.dtype == np.float32
    assert first.shape == (SAMPLES,)
    assert 0.01 < np.abs(first).max() <= 1.0


def test_splits_have_the_asked_sizes_and_other_voices() -> None:
    data = digits()
    counts: dict[Split, int] = {"train": 6, "test": 3}
    for split, count in counts.items():
        assert np.bincount(data.labels(split)).tolist() == [count] * 10
        assert len(data.items("audio", split, range(10 * count))) == 10 * count
        assert np.array_equal(data.targets(split, [0, 5]), data.labels(split)[[0, 5]])
    assert not set(data.groups("train")) & set(data.groups("test"))
    assert max(*data.groups("train"), *data.groups("test")) < len(VARIANTS)
    assert len(set(ACCENTS)) == len(ACCENTS)


def test_draws_follow_the_seed() -> None:
    prints = [[i.digest for i in digits(s).items("audio", "train", range(60))] for s in (1, 1, 2)]
    assert prints[0] == prints[1]
    assert len(set(prints[0])) == 60
    assert not set(prints[0]) & set(prints[2])


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="it has: audio"):
        digits().items("image", "train", [0])
    with pytest.raises(AssetError, match=r"cannot speak.*nobody"):
        Espeak.shared().say("one", voice="nobody", rate=150, pitch=50)


def test_a_process_that_was_killed_is_started_again() -> None:
    with Espeak() as speaker:
        before, _ = speaker.say("one", voice="en+m1", rate=150, pitch=50)
        assert speaker.process is not None
        speaker.process.kill()
        speaker.process.wait()
        after, rate = speaker.say("one", voice="en+m1", rate=150, pitch=50)
    assert speaker.process is None
    assert before.tobytes() == after.tobytes()
    assert rate == 22050
