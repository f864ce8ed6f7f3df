"""The label skew is the one that flwr-datasets draws, bit for bit, without its dependencies."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hffm_flower.data.partition import _split_dirichlet
from hffm_flower.errors import ConfigError
from hffm_flower.seeding import stream_seed


@settings(max_examples=25)
@given(
    labels=st.lists(st.integers(0, 6), min_size=8, max_size=120),
    devices=st.integers(1, 8), alpha=st.sampled_from([0.05, 0.5, 5.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_same_examples_for_each_device(
    labels: list[int], devices: int, alpha: float, seed: int
) -> None:
    theirs = importlib.import_module("flwr_datasets.partitioner").DirichletPartitioner(
        devices, "label", alpha, min_partition_size=1, self_balancing=False,
        seed=stream_seed(seed, "partition", "task", "train"),
    )  # fmt: skip
    theirs.dataset = importlib.import_module("datasets").Dataset.from_dict(
        {"label": labels, "row": list(range(len(labels)))}
    )
    ids = list(range(10, 10 + devices))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of draws that leave somebody without examples
            want = {i: sorted(theirs.load_partition(j)["row"]) for j, i in enumerate(ids)}
    except ValueError:
        with pytest.raises(ConfigError, match=f"{devices} devices of task 'task' without any"):
            _split_dirichlet("task", np.array(labels), ids, seed=seed, alpha=alpha)
        return
    got = _split_dirichlet("task", np.array(labels), ids, seed=seed, alpha=alpha)
    assert {i: list(rows) for i, rows in got.items()} == want
