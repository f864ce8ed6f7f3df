"""A run's data sets and the devices' shares of them, opened and drawn once per process.

The partition is kept in the cache folder, where other processes of the machine find it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from hffm_flower.config import RunConfig
from hffm_flower.data import DATASETS, TASKS
from hffm_flower.data.dataset import Dataset
from hffm_flower.data.partition import Partition, partition
from hffm_flower.data.partition_file import load_partition, save_partition
from hffm_flower.errors import ConfigError
from hffm_flower.seeding import stream_seed
from hffm_flower.tasks import spec_of


def shared_partition(config: RunConfig) -> Partition:
    """Partition of a run: read from the cache folder, or drawn and left there."""
    return drawn_partition(partition_file(config), config)


def partition_file(config: RunConfig) -> Path:
    """Where the partition of a run is kept."""
    data = config.data
    name = _name(
        config.seed, config.tree.devices, data.tasks, data.alpha, data.full_modality_share,
        data.min_tasks, data.max_tasks, data.train_per_answer, data.test_per_answer,
        tuple(sorted(config.encoder_names())), contents(data.tasks),
    )  # fmt: skip
    return config.cache_dir() / "partitions" / f"{name}.npz"


def _name(*settings: object) -> str:
    return f"{stream_seed(0, *map(str, settings)):016x}"


def contents(tasks: Iterable[str]) -> tuple[str, ...]:
    """What tells prepared tasks from others that had their names."""
    return tuple(TASKS[task].content for task in tasks if task in TASKS)


@lru_cache(maxsize=4)
def drawn_partition(path: Path, config: RunConfig) -> Partition:
    """The partition that ``path`` holds, or drawn and left there."""
    for task in config.data.tasks:
        if spec_of(task).content:
            dataset_of(config, task)  # its files may have gone since the partition was drawn
    with contextlib.suppress(ConfigError):
        return load_partition(path)
    data = config.data
    drawn = partition(
        devices=config.tree.devices,
        tasks=data.tasks,
        seed=config.seed,
        alpha=data.alpha,
        full_share=data.full_modality_share,
        min_tasks=data.min_tasks,
        max_tasks=data.max_tasks,
        train_per_answer=data.train_per_answer,
        test_per_answer=data.test_per_answer,
        encoders_serve=config.encoder_names(),
        datasets={task: dataset_of(config, task) for task in data.tasks},
    )
    try:
        save_partition(path, drawn)
    except OSError as error:
        raise ConfigError(
            f"the cache folder {str(config.cache_dir())!r} cannot be used ({error.strerror}); set "
            "paths.cache or the environment variable HFFM_CACHE",
            key="paths.cache",
        ) from error
    return load_partition(path)


def dataset_of(config: RunConfig, task: str) -> Dataset:
    """The data set of a task, opened once per process.

    Raises:
        ConfigError: It cannot give what the run asks of it.
    """
    data = config.data
    per = data.train_per_answer, data.test_per_answer
    return opened(task, *per, config.seed, spec_of(task).content)


@lru_cache(maxsize=32)
def opened(
    task: str, train_per_answer: int, test_per_answer: int, seed: int, content: str
) -> Dataset:
    """A data set, by all that it follows from."""
    del content  # a task that was prepared anew is another data set
    return DATASETS[TASKS[task].dataset](
        task, train_per_answer=train_per_answer, test_per_answer=test_per_answer, seed=seed
    )
