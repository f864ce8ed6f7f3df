"""The feature cache: same bits however it is used, whole files, nothing damaged served."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from hffm_flower.data import DATASETS
from hffm_flower.data.dataset import Item, text_item
from hffm_flower.models.encoders import ENCODERS, FeatureCache, Stream, Tokens, Weights
from hffm_flower.models.encoders.encoder import Uncut

CPU = torch.device("cpu")


class Counting(Uncut):
    """An encoder of texts that counts what it encodes; values are no float16 numbers."""

    assets: ClassVar[tuple[str, ...]] = ()
    modality: ClassVar[str] = "text"
    streams: Mapping[str, Stream] = {"a": Stream(3, 5), "b": Stream(2, 4)}
    cacheable: ClassVar[bool] = True

    def __init__(
        self, weights: Weights = "random", seed: int = 0, device: torch.device = CPU, cut: int = 0
    ) -> None:
        self.seen: list[str] = []
        self._seed = seed

    def fingerprint(self) -> str:
        return f"{self._seed:064x}"

    def encode(self, items: Sequence[Item]) -> dict[str, Tokens]:
        self.seen += [str(i.load()) for i in items]
        out = {}
        for name, shape in self.streams.items():
            ramp = torch.arange(shape.tokens * shape.width).view(1, shape.tokens, shape.width)
            scale = torch.tensor([float(str(i.load())) for i in items]).view(-1, 1, 1)
            values = ramp / 7 * scale + 0.1
            out[name] = Tokens(values, values[:, :, 0] < 5)
        return out


def texts(*numbers: int) -> list[Item]:
    return [text_item(str(n)) for n in numbers]


def same(left: dict[str, Tokens], right: dict[str, Tokens]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[s].values, right[s].values) and torch.equal(left[s].mask, right[s].mask)
        for s in left
    )


def entries(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


def test_hit_equals_miss_and_repeats_are_encoded_once(tmp_path: Path) -> None:
    encoder, cache = Counting(), FeatureCache(tmp_path)
    wanted = texts(3, 1, 1, 3, 200)
    miss = cache.features(encoder, wanted)
    assert sorted(encoder.seen) == ["1", "200", "3"]
    hit = FeatureCache(tmp_path).features(encoder, wanted)
    assert len(encoder.seen) == 3
    assert same(miss, hit)
    direct = encoder.encode(wanted)
    for stream, tokens in direct.items():
        assert torch.equal(miss[stream].values, tokens.values.half().float())
        assert torch.equal(miss[stream].mask, tokens.mask)
        assert miss[stream].values.dtype == torch.float32
    assert len(entries(tmp_path)) == 3


def test_values_beyond_float16_are_clipped_not_infinite(tmp_path: Path) -> None:
    tokens = FeatureCache(tmp_path).features(Counting(), texts(10**8))["a"]
    assert tokens.values.isfinite().all()
    assert tokens.values.max() == 65504


def test_shared_and_own_caches_give_equal_bits(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    data = DATASETS["emoji-vqa"]("emojivqa10", train_per_answer=3, test_per_answer=1, seed=0)
    shares = [range(12), range(7, 19), [25, 3]]
    for name in ("lite0", "minilm"):
        encoder = ENCODERS[name]("random", 0, CPU)
        shared = FeatureCache(tmp_path / "shared")
        for device, share in enumerate(shares):
            items = data.items(encoder.modality, "train", share)
            own = FeatureCache(tmp_path / str(device))
            assert same(shared.features(encoder, items), own.features(encoder, items))


def test_encoders_of_other_fingerprints_do_not_meet(tmp_path: Path) -> None:
    cache, first, second = FeatureCache(tmp_path), Counting(seed=0), Counting(seed=1)
    cache.features(first, texts(1))
    cache.features(second, texts(1))
    assert second.seen == ["1"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "longer", "other"])
def test_damaged_entries_are_computed_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    encoder, cache = Counting(), FeatureCache(tmp_path)
    good = cache.features(encoder, texts(1, 2))
    victim = entries(tmp_path)[0]
    data = victim.read_bytes()
    victim.write_bytes(
        {
            "truncated": data[:-3],
            "empty": b"",
            "flipped": data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
            "longer": data + b"x",
            "other": b"x" * len(data),
        }[damage]
    )
    with caplog.at_level(logging.WARNING):
        assert same(cache.features(encoder, texts(1, 2)), good)
    assert len(encoder.seen) == 3
    assert "damaged" in caplog.text
    assert victim.read_bytes() == data


def test_unwritable_root_costs_speed_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    encoder = Counting()
    with caplog.at_level(logging.WARNING):
        found = FeatureCache(tmp_path / "file").features(encoder, texts(1, 2))
    assert same(found, FeatureCache(tmp_path / "good").features(encoder, texts(1, 2)))
    assert "cannot keep tokens" in caplog.text


def test_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("hffm_flower.models.encoders.cache.os.replace", fail)
    FeatureCache(tmp_path).features(Counting(), texts(1))
    assert entries(tmp_path) == []


def test_what_is_not_cacheable_is_neither_rounded_nor_kept(tmp_path: Path) -> None:
    class Passing(Counting):
        cacheable: ClassVar[bool] = False

    found = FeatureCache(tmp_path).features(Passing(), texts(1))
    assert same(found, Passing().encode(texts(1)))
    assert entries(tmp_path) == []


def test_no_items(tmp_path: Path) -> None:
    found = FeatureCache(tmp_path).features(Counting(), [])
    assert found["a"].values.shape == (0, 3, 5)
    assert found["a"].mask.shape == (0, 3)


def _fill(root: Path, turns: int) -> float:
    cache, total = FeatureCache(root), 0.0
    for _ in range(turns):
        encoder = Counting()
        for path in entries(root)[::3]:
            path.unlink(missing_ok=True)
        total = float(cache.features(encoder, texts(*range(100)))["a"].values.sum())
    return total


@pytest.mark.parametrize("threads", [False, True])
def test_writers_at_once_do_not_hurt_each_other(tmp_path: Path, threads: bool) -> None:
    expected = _fill(tmp_path / "alone", 1)
    fork = multiprocessing.get_context("fork")  # a spawned process cannot import this module
    workers = ThreadPoolExecutor(2) if threads else ProcessPoolExecutor(2, mp_context=fork)
    with workers as pool:
        totals = list(pool.map(_fill, [tmp_path / "both"] * 2, [5, 5], timeout=60))
    assert totals == [expected, expected]
    encoder = Counting()
    FeatureCache(tmp_path / "both").features(encoder, texts(*range(100)))
    assert not [p for p in entries(tmp_path / "both") if p.name.startswith(".")]
