"""Who has what: tasks, modalities and examples of every device of a run.

Three skews, each drawn from its own stream of the run's seed: tasks are dealt from
shuffled decks, some devices lack a modality, and the examples of a task are split by a
Dirichlet over its labels, or by their natural owners where the data set knows them.

Source: label skew: Hsu et al. 2019, arXiv 1909.06335; drawn as flwr-datasets draws it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hffm_flower.data import DATASETS
from hffm_flower.data.dataset import Dataset, Split
from hffm_flower.errors import ConfigError
from hffm_flower.profile import NodeProfile
from hffm_flower.seeding import generator, stream_seed
from hffm_flower.tasks import TaskSpec, spec_of

Shards = tuple[NDArray[np.int64], ...]
EMPTY: Final = np.empty(0, dtype=np.int64)
DRAWS: Final = 11
"""So often a label skew is drawn until every device has an example."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Every device's share.

    Attributes:
        profiles: One per device, by index.
        train: Task -> training examples of every device, sorted; empty where it has none.
        test_iid: Task -> shards of the test set with everybody's label mix.
        test_skewed: Task -> shards of the test set with each device's own label mix.
    """

    profiles: tuple[NodeProfile, ...]
    train: Mapping[str, Shards]
    test_iid: Mapping[str, Shards]
    test_skewed: Mapping[str, Shards]


def partition(
    *,
    devices: int,
    tasks: Sequence[str],
    seed: int,
    alpha: float,
    full_share: float,
    min_tasks: int,
    max_tasks: int,
    train_per_answer: int,
    test_per_answer: int,
    encoders_serve: Collection[str],
    datasets: Mapping[str, Dataset] | None = None,
) -> Partition:
    """Draw the partition of a run.

    Args:
        devices: How many.
        tasks: Names in `TASKS`.
        seed: The run's seed.
        alpha: Dirichlet concentration of the label skew, > 0; small is skewed.
        full_share: Share of the devices that hold every modality of their tasks, 0..1.
        min_tasks: Least tasks of a device.
        max_tasks: Most tasks of a device; more than there are means all.
        train_per_answer: Training examples per answer.
        test_per_answer: Test examples per answer.
        encoders_serve: Modalities that the run's encoders read; others are held by nobody.
        datasets: Task -> data set that is open already; others are opened here.

    Raises:
        ConfigError: Settings that cannot be met; it names the setting and what to change.
    """
    specs = _checked(tasks, encoders_serve)
    wanted = _deal(devices, list(specs), seed, min_tasks, max_tasks)
    held = _modalities(wanted, specs, seed, full_share)
    serves = set(encoders_serve)
    modalities = [tuple(sorted(has & serves)) for has in held]
    train: dict[str, Shards] = {}
    iid: dict[str, Shards] = {}
    skewed: dict[str, Shards] = {}
    for task, spec in specs.items():
        able = [
            i for i in range(devices) if task in wanted[i] and set(spec.required) <= held[i]
        ]  # fmt: skip
        if not able:
            raise ConfigError(
                f"no device can train task {task!r}: of {devices} devices none was given it "
                f"together with {' and '.join(spec.required)}; use more devices, raise "
                "data.full-modality-share or data.min-tasks, drop the task, or change the seed",
                key="data.tasks",
            )
        dataset = (datasets or {}).get(task) or DATASETS[spec.dataset](
            task, train_per_answer=train_per_answer, test_per_answer=test_per_answer, seed=seed
        )
        shards = _split_train(task, dataset, able, seed=seed, alpha=alpha)
        train[task] = _spread(shards, devices)
        holders = [i for i, shard in shards.items() if len(shard)]
        iid[task] = _spread(_split_iid(task, dataset, "test", holders, seed), devices)
        skewed[task] = _spread(_split_like(task, dataset, shards, holders, seed), devices)
    profiles = tuple(
        NodeProfile(
            index=i,
            modalities=modalities[i],
            tasks={t: len(train[t][i]) for t in specs if len(train[t][i])},
            wanted=wanted[i],
            tests={t: len(iid[t][i]) for t in specs if len(iid[t][i])},
        )
        for i in range(devices)
    )
    return Partition(profiles, train, iid, skewed)


def _checked(tasks: Sequence[str], encoders_serve: Collection[str]) -> dict[str, TaskSpec]:
    if not tasks or len(set(tasks)) < len(tasks):
        raise ConfigError(f"tasks must be given, each once, not: {list(tasks)}", key="data.tasks")
    specs = {t: spec_of(t) for t in tasks}
    for task, spec in specs.items():
        for modality in spec.required:
            if modality not in encoders_serve:
                raise ConfigError(
                    f"task {task!r} needs the modality {modality!r}, which no encoder of this "
                    f"run reads; they read: {', '.join(sorted(encoders_serve)) or 'nothing'}",
                    key="model.encoders",
                )
    return specs


def _deal(devices: int, tasks: list[str], seed: int, low: int, high: int) -> list[tuple[str, ...]]:
    """Tasks of every device, dealt from shuffled decks so that all are about as frequent."""
    high = min(high, len(tasks))
    if devices < 1:
        raise ConfigError(f"a run needs at least 1 device, not {devices}", key="tree.devices")
    if not 1 <= low <= high:
        raise ConfigError(
            f"{low} is not in 1..{high}, the most tasks that a device can have",
            key="data.min-tasks",
        )
    rng = generator(seed, "partition", "tasks")
    deck: list[str] = []
    hands = []
    for _ in range(devices):
        hand: list[str] = []
        for _ in range(int(rng.integers(low, high + 1))):
            if all(card in hand for card in deck):
                deck += [tasks[i] for i in rng.permutation(len(tasks))]
            hand.append(deck.pop(next(i for i, c in enumerate(deck) if c not in hand)))
        hands.append(tuple(t for t in tasks if t in hand))
    return hands


def _modalities(
    wanted: list[tuple[str, ...]], specs: Mapping[str, TaskSpec], seed: int, full_share: float
) -> list[set[str]]:
    """Modalities of every device, before asking which of them an encoder reads."""
    if not 0.0 <= full_share <= 1.0:
        raise ConfigError(f"{full_share} is not in 0..1", key="data.full-modality-share")
    rng = generator(seed, "partition", "modalities")
    order = rng.permutation(len(wanted))
    lacking = set(order[round(full_share * len(wanted)) :].tolist())
    held = []
    for i, tasks in enumerate(wanted):
        has = {m for t in tasks for m in (*specs[t].required, *specs[t].optional)}
        if i in lacking:
            choices = [
                m for m in sorted(has)
                if any(set(specs[t].required) <= has - {m} for t in tasks)
            ] or sorted(has)  # fmt: skip
            has.discard(choices[int(rng.integers(len(choices)))])
        held.append(has)
    return held


def _split_train(
    task: str, dataset: Dataset, able: list[int], *, seed: int, alpha: float
) -> dict[int, NDArray[np.int64]]:
    groups = dataset.groups("train")
    if groups is not None:
        return _split_groups(groups, able, generator(seed, "partition", task, "train"))
    labels = dataset.labels("train")
    if not labels.any():
        return _split_iid(task, dataset, "train", able, seed)
    return _split_dirichlet(task, labels, able, seed=seed, alpha=alpha)


def _split_dirichlet(
    task: str, labels: NDArray[np.int64], able: list[int], *, seed: int, alpha: float
) -> dict[int, NDArray[np.int64]]:
    if not 0.0 < alpha < float("inf"):
        raise ConfigError(f"{alpha} is not a number > 0", key="data.alpha")
    rng = np.random.default_rng(stream_seed(seed, "partition", task, "train"))
    by_label = [np.nonzero(labels == label)[0] for label in np.unique(labels)]
    for _ in range(DRAWS):
        parts: list[list[NDArray[np.int64]]] = [[] for _ in able]
        for rows in by_label:
            shares = rng.dirichlet(np.full(len(able), alpha))
            ends = (np.cumsum(shares) * len(rows)).astype(np.int64)
            for part, some in zip(parts, np.split(rows, ends[:-1]), strict=True):
                part.append(some)
        found = {i: np.sort(np.concatenate(part)) for i, part in zip(able, parts, strict=True)}
        if all(map(len, found.values())):
            return found
    raise ConfigError(
        f"{alpha} leaves some of the {len(able)} devices of task {task!r} "
        f"without any of its {len(labels)} examples; raise data.alpha or "
        "data.train-per-answer, or use fewer devices",
        key="data.alpha",
    )


def _split_groups(
    groups: NDArray[np.int64], able: list[int], rng: np.random.Generator
) -> dict[int, NDArray[np.int64]]:
    """One group per device, in turn; groups beyond the devices, and devices beyond the groups.

    Devices of one group share its examples. Where there are more groups than devices, a
    device has several.
    """
    names = rng.permutation(np.unique(groups))
    owners: list[list[int]] = [[] for _ in names]
    for j in range(max(len(able), len(names))):
        owners[j % len(names)].append(able[j % len(able)])
    parts: dict[int, list[NDArray[np.int64]]] = {i: [] for i in able}
    for name, mine in zip(names, owners, strict=True):
        rows = rng.permutation(np.nonzero(groups == name)[0])
        for i, part in zip(mine, np.array_split(rows, len(mine)), strict=True):
            parts[i].append(part)
    return {i: np.sort(np.concatenate(p)) for i, p in parts.items()}


def _split_iid(
    task: str, dataset: Dataset, split: Split, holders: list[int], seed: int
) -> dict[int, NDArray[np.int64]]:
    count = len(dataset.labels(split))
    rows = generator(seed, "partition", task, split, "iid").permutation(count)
    parts = np.array_split(rows, len(holders))
    return {i: np.sort(part) for i, part in zip(holders, parts, strict=True)}


def _split_like(
    task: str,
    dataset: Dataset,
    train: Mapping[int, NDArray[np.int64]],
    holders: list[int],
    seed: int,
) -> dict[int, NDArray[np.int64]]:
    """Test shards in proportion to each device's share of each class in training."""
    rng = generator(seed, "partition", task, "test", "skewed")
    labels, answers = dataset.labels("train"), dataset.labels("test")
    parts: dict[int, list[NDArray[np.int64]]] = {i: [EMPTY] for i in holders}
    for label in np.unique(answers):
        rows = rng.permutation(np.nonzero(answers == label)[0])
        counts = np.array([np.count_nonzero(labels[train[i]] == label) for i in holders])
        if counts.sum():
            cuts = np.rint(np.cumsum(counts) / counts.sum() * len(rows)).astype(np.int64)
            for i, part in zip(holders, np.split(rows, cuts[:-1]), strict=True):
                parts[i].append(part)
    return {i: np.sort(np.concatenate(p)) for i, p in parts.items()}


def _spread(shards: Mapping[int, NDArray[np.int64]], devices: int) -> Shards:
    return tuple(shards.get(i, EMPTY) for i in range(devices))
