"""Spoken digits, SYNTHETIC: made by eSpeak NG, with noise; no person was recorded.

Clips of 1.5 s at 16 kHz. Vocal tracts (eSpeak's variants) of training and test are disjoint,
accents are shared; speed, pitch, loudness, place in the clip and noise (5 to 20 dB below
the speech) are drawn for every clip.
"""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from hffm_flower.assets import ASSETS
from hffm_flower.data.dataset import Indices, Item, Split, no_modality
from hffm_flower.data.espeak import Espeak
from hffm_flower.seeding import generator
from hffm_flower.tasks import TASKS

RATE_HZ: Final = 16_000
SAMPLES: Final = 24_000
ACCENTS: Final = (
    *("en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd"),
    *("en-029", "en-us-nyc"),
)
VARIANTS: Final = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f4", "Alex", "Andrea", "Andy"),
    *("Annie", "Gene", "Jacky", "Lee", "Marco", "Mario", "Michael", "adam", "anika", "antonio"),
    *("aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward", "grandma"),
    *("grandpa", "gustave", "ian", "john", "linda", "marcelo", "max", "michel", "miguel"),
    *("norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "shelby", "steph"),
    *("travis", "zac", "klatt"),
)
"""Those whose sound holds no noise of the library's own, which no seed governs."""
TEST_SHARE: Final = 0.25
FULL_SCALE: Final = 32_768.0


@dataclass(frozen=True, slots=True)
class Clip:
    """How one clip is made."""

    digit: str
    voice: str
    rate: int
    pitch: int
    gain_db: float
    place: float
    snr_db: float
    noise: int

    def item(self) -> Item:
        """The clip, spoken when it is needed."""
        library = ASSETS["espeak-ng"].sha256
        words = "\x1f".join(map(str, ("digits-1", library, RATE_HZ, SAMPLES, *astuple(self))))
        return Item(hashlib.sha256(words.encode()).hexdigest(), self.wave)

    def wave(self) -> NDArray[np.float32]:
        """Samples [24000] between -1 and 1."""
        spoken, rate = Espeak.shared().say(
            self.digit, voice=self.voice, rate=self.rate, pitch=self.pitch
        )
        speech = _resampled(spoken / FULL_SCALE, rate)[:SAMPLES] * 10 ** (self.gain_db / 20)
        start = int(self.place * (SAMPLES - len(speech) + 1))
        power = float(np.mean(speech**2)) if len(speech) else 0.0
        deviation = (power * 10 ** (-self.snr_db / 10)) ** 0.5
        wave = np.random.default_rng(self.noise).standard_normal(SAMPLES) * deviation
        wave[start : start + len(speech)] += speech
        made: NDArray[np.float32] = wave.astype(np.float32)
        return made


class Digits:
    """Zero to nine by many voices."""

    assets: ClassVar[tuple[str, ...]] = ("espeak-ng",)

    def __init__(
        self, task: str, *, train_per_answer: int, test_per_answer: int, seed: int
    ) -> None:
        digits = TASKS[task].answers
        self._task = task
        order = generator(seed, "data", task, "split").permutation(len(VARIANTS))
        cut = round(len(VARIANTS) * TEST_SHARE)
        variants: dict[Split, NDArray[np.int64]] = {"test": order[:cut], "train": order[cut:]}
        counts: dict[Split, int] = {"train": train_per_answer, "test": test_per_answer}
        self._labels: dict[Split, NDArray[np.int64]] = {}
        self._owners: dict[Split, NDArray[np.int64]] = {}
        self._clips: dict[Split, list[Clip]] = {}
        for split, per_answer in counts.items():
            rng = generator(seed, "data", task, split)
            labels = rng.permutation(np.repeat(np.arange(len(digits)), per_answer))
            owners = rng.choice(variants[split], len(labels))
            self._labels[split], self._owners[split] = labels.astype(np.int64), owners
            self._clips[split] = [
                Clip(
                    digits[label],
                    f"{ACCENTS[int(rng.integers(len(ACCENTS)))]}+{VARIANTS[owner]}",
                    rate=int(rng.integers(120, 200)),
                    pitch=int(rng.integers(25, 75)),
                    gain_db=float(rng.uniform(-12, 0)),
                    place=float(rng.uniform()),
                    snr_db=float(rng.uniform(5, 20)),
                    noise=int(rng.integers(2**62)),
                )
                for label, owner in zip(labels, owners, strict=True)
            ]

    def labels(self, split: Split) -> NDArray[np.int64]:
        """Digits [N]."""
        return self._labels[split].copy()

    def groups(self, split: Split) -> NDArray[np.int64]:
        """Voices [N], as places in `VARIANTS`."""
        return self._owners[split].copy()

    def targets(self, split: Split, indices: Indices) -> NDArray[np.int64]:
        """Digits [n]."""
        return self._labels[split][np.asarray(indices, dtype=np.int64)]

    def items(self, modality: str, split: Split, indices: Indices) -> list[Item]:
        """Clips [24000] at 16 kHz."""
        if modality != "audio":
            raise no_modality(self._task, modality, "audio")
        return [self._clips[split][i].item() for i in indices]


def _resampled(samples: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    """The same sound at `RATE_HZ`, linearly interpolated."""
    count = len(samples) * RATE_HZ // rate
    times = np.arange(count) * (rate / RATE_HZ)
    return np.asarray(np.interp(times, np.arange(len(samples)), samples), np.float64)
