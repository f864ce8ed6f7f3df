"""Whatever the settings: shards cover and do not overlap, profiles agree with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hffm_flower.data import TASKS
from hffm_flower.data.dataset import Indices, Item, Split
from hffm_flower.data.partition import Partition, partition
from hffm_flower.errors import ConfigError

ALL = ("audio", "image", "sensor", "text")
SIZES = {"train": 300, "test": 90}


@dataclass(frozen=True)
class Fake:
    """Labels and groups like a task's data set; no inputs."""

    task: str

    def labels(self, split: Split) -> NDArray[np.int64]:
        classes = max(1, len(TASKS[self.task].answers))
        return np.arange(SIZES[split], dtype=np.int64) * 7 % classes

    def groups(self, split: Split) -> NDArray[np.int64] | None:
        if self.task != "watch7":
            return None
        return np.arange(SIZES[split], dtype=np.int64) // 50

    def targets(self, split: Split, indices: Indices) -> NDArray[np.int64]:
        raise AssertionError("a partition reads no inputs and no targets")

    def items(self, modality: str, split: Split, indices: Indices) -> list[Item]:
        raise AssertionError("a partition reads no inputs and no targets")


def draw(
    *,
    devices: int = 12,
    tasks: Sequence[str] = tuple(TASKS),
    seed: int = 0,
    alpha: float = 1.0,
    full_share: float = 0.5,
    min_tasks: int = 1,
    max_tasks: int = 3,
    encoders_serve: Collection[str] = ALL,
    real: bool = False,
) -> Partition:
    return partition(
        devices=devices,
        tasks=tasks,
        seed=seed,
        alpha=alpha,
        full_share=full_share,
        min_tasks=min_tasks,
        max_tasks=max_tasks,
        train_per_answer=30,
        test_per_answer=9,
        encoders_serve=encoders_serve,
        datasets=None if real else {t: Fake(t) for t in tasks if t in TASKS},
    )


def check(p: Partition, sizes: dict[str, dict[str, int]]) -> None:
    for task, size in sizes.items():
        for shards, split in ((p.train, "train"), (p.test_iid, "test"), (p.test_skewed, "test")):
            assert len(shards[task]) == len(p.profiles)
            assert all(s.dtype == np.int64 for s in shards[task])
            together = np.concatenate(shards[task])
            assert len(set(together.tolist())) == len(together)  # disjoint
            if shards is not p.test_skewed:
                assert sorted(together.tolist()) == list(range(size[split]))
        for profile, train, *tests in zip(
            p.profiles, p.train[task], p.test_iid[task], p.test_skewed[task], strict=True
        ):
            assert profile.tasks.get(task, 0) == len(train)
            assert profile.tests.get(task, 0) == len(tests[0])
            if not len(train):
                assert not any(len(t) for t in tests)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    devices=st.integers(1, 30),
    tasks=st.permutations(list(TASKS)).flatmap(
        lambda t: st.integers(1, len(t)).map(lambda n: tuple(t[:n]))
    ),
    seed=st.integers(0, 2**40),
    full_share=st.floats(0, 1),
    counts=st.tuples(st.integers(1, 4), st.integers(1, 4)).map(sorted),
    alpha=st.sampled_from([0.3, 1.0, 100.0]),
    serve=st.sampled_from([ALL, ("audio", "image", "sensor")]),
)
def test_laws(**kwargs: Any) -> None:
    counts, serve, tasks = kwargs.pop("counts"), kwargs.pop("serve"), kwargs["tasks"]
    low, high = min(counts[0], len(tasks)), counts[1]
    arguments = kwargs | {"min_tasks": low, "max_tasks": high, "encoders_serve": serve}
    unread = any(set(TASKS[t].required) - set(serve) for t in tasks)
    try:
        p = draw(**arguments)
    except ConfigError as error:
        if error.key not in {"data.tasks", "data.alpha", *["model.encoders"] * unread}:
            raise
        return
    assert not unread
    check(p, {t: SIZES for t in tasks})
    again = draw(**arguments)
    assert again.profiles == p.profiles
    for task in tasks:
        for ours, theirs in zip(p.train[task], again.train[task], strict=True):
            assert ours.tolist() == theirs.tolist()
    full = 0
    for i, profile in enumerate(p.profiles):
        assert profile.index == i
        assert low <= len(profile.wanted) <= min(high, len(tasks))
        assert set(profile.tasks) <= set(profile.wanted)
        assert all(set(TASKS[t].required) <= set(profile.modalities) for t in profile.tasks)
        assert set(profile.modalities) <= set(serve)
        needs = {m for t in profile.wanted for m in TASKS[t].inputs}
        assert set(profile.modalities) <= needs
        full += set(profile.modalities) == needs & set(serve)
        if profile.idle and len(p.profiles) < 20:
            missing = [set(TASKS[t].required) - set(profile.modalities) for t in profile.wanted]
            assert all(missing)  # it lost the one that its tasks need
        if serve == ALL:
            assert len(needs - set(profile.modalities)) in (0, 1)
    if serve == ALL:
        assert full == round(kwargs["full_share"] * len(p.profiles))
    # Dealt from decks: the most and the least frequent task differ by little.
    dealt = Counter(t for profile in p.profiles for t in profile.wanted)
    assert max(dealt.values()) - min(dealt[t] for t in tasks) <= 3


def test_real_data_sets_are_covered() -> None:
    p = draw(real=True, seed=1, devices=10, full_share=0.8, min_tasks=2)
    check(p, {t: {"train": 300, "test": 90} for t in TASKS})


def test_seeds_differ() -> None:
    assert draw(seed=1, min_tasks=3).profiles != draw(seed=2, min_tasks=3).profiles


def test_skewed_test_follows_training() -> None:
    p = draw(tasks=("easyvqa10",), alpha=0.3, full_share=1.0, devices=5)
    labels = Fake("easyvqa10").labels
    assert sum(len(s) for s in p.test_skewed["easyvqa10"]) == SIZES["test"]
    for train, test in zip(p.train["easyvqa10"], p.test_skewed["easyvqa10"], strict=True):
        mine = np.bincount(labels("train")[train], minlength=10) / 30
        tested = np.bincount(labels("test")[test], minlength=10) / 9
        assert np.abs(mine - tested).max() <= 1 / 9
    spread = [np.bincount(labels("train")[s], minlength=10) for s in p.train["easyvqa10"]]
    assert np.std(np.array(spread) / 30) > 0.1  # alpha makes it skewed


def test_natural_owners_keep_their_examples() -> None:
    p = draw(tasks=("watch7",), full_share=1.0, devices=8)
    groups = Fake("watch7").groups("train")
    assert groups is not None
    owners = [set(groups[s].tolist()) for s in p.train["watch7"]]
    assert all(len(o) == 1 for o in owners)
    assert set.union(*owners) == set(range(6))
    few = draw(tasks=("watch7",), full_share=1.0, devices=4)
    assert sorted(len(set(groups[s].tolist())) for s in few.train["watch7"]) == [1, 1, 2, 2]


def test_more_holders_than_owners_examples_drop_the_task() -> None:
    p = draw(tasks=("watch7", "easyvqa-box"), full_share=1.0, devices=400, max_tasks=1)
    assert {len(s) for s in p.train["watch7"]} >= {1, 2}
    dropped = draw(tasks=("easyvqa-box",), full_share=1.0, devices=400)
    assert sum(q.idle for q in dropped.profiles) == 100


@pytest.mark.parametrize(
    ("change", "key", "text"),
    [
        ({"tasks": ("easyvqa11",)}, "data.tasks", "did you mean 'easyvqa10'"),
        ({"tasks": ()}, "data.tasks", "must be given"),
        ({"tasks": ("watch7", "watch7")}, "data.tasks", "each once"),
        ({"encoders_serve": ("image",)}, "model.encoders", "'watch7' needs the modality 'sensor'"),
        ({"tasks": ("watch7",), "full_share": 0.0}, "data.tasks", "no device can train task"),
        ({"alpha": 1e-3, "tasks": ("easyvqa10",)}, "data.alpha", "raise data.alpha"),
        ({"alpha": 0.0}, "data.alpha", "not a number > 0"),
        ({"full_share": 1.5}, "data.full-modality-share", "not in 0..1"),
        ({"min_tasks": 4}, "data.min-tasks", "not in 1..3"),
        ({"devices": 0}, "tree.devices", "at least 1"),
    ],
)
def test_what_cannot_be_met_is_told(change: dict[str, Any], key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        draw(**change)
    assert caught.value.key == key
