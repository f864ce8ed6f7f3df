"""The reported bound on what truncation of LoRA loses holds, over the whole tree."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hffm_flower.config import RunConfig
from hffm_flower.lora import Scaling, is_lora, product
from hffm_flower.modules import ModularUpdate, ModuleKey
from tests.support.exchange import updates_of
from tests.support.kinds import DEEP
from tests.support.played import play

ROUNDING = 1e-6
"""Of float32 factors, relative to the mean's nuclear norm; twice, as two tiers round."""

Products = dict[str, NDArray[np.float64]]


def mean_products(updates: list[ModularUpdate], key: ModuleKey, scaling: Scaling) -> Products:
    """Layer -> mean of the devices' products, each weighted by its mass."""
    total = sum(u.mass[key] for u in updates)
    mean: Products = {}
    for update in updates:
        for layer, dense in product(update.state[key], scaling).items():
            mean[layer] = mean.get(layer, np.zeros_like(dense)) + update.mass[key] / total * dense
    return mean


def nuclear(dense: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(dense, "nuc"))


@pytest.mark.parametrize("scaling", Scaling)
@pytest.mark.parametrize(
    ("edge_rank", "cloud_rank"), list(itertools.product([0, 1, 3], [0, 2])), ids=str
)
def test_what_is_lost_is_within_the_bound(
    tiny: RunConfig, tmp_path: Path, edge_rank: int, cloud_rank: int, scaling: Scaling
) -> None:
    config = tiny.with_values(
        rounds=2, tree__period=2, model__adapter="lora", model__lora_ranks="2 3 5",
        model__lora_scaling=scaling, server__edge_rank=edge_rank, server__cloud_rank=cloud_rank,
        model__encoders=DEEP, model__tune="image=lora:2:2", data__test_per_answer=2,
    )  # fmt: skip
    run = play(config, tmp_path / "out")
    assert run.error is None
    cloud, reported = run.files.cloud(), run.rounds[-1].lora_bound
    updates = [u for _, u in sorted(updates_of(run, 2).items())]
    keys = [key for key, state in cloud.items() if is_lora(state)]
    assert {str(key) for key in keys} == reported.keys() == {"adapter/tiny.0", "encoder/image"}
    for key in keys:
        mean = mean_products([u for u in updates if u.mass.get(key)], key, scaling)
        got = product(cloud[key], scaling)
        lost = sum(nuclear(mean[layer] - got[layer]) for layer in mean)
        bound = reported[str(key)]
        rounding = 2 * ROUNDING * sum(map(nuclear, mean.values()))
        assert lost <= bound + rounding
        if edge_rank == 0:  # the cloud alone has cut: the bound is what is lost
            assert lost == pytest.approx(bound, abs=rounding)
        if edge_rank or cloud_rank:
            assert lost > rounding  # so something was cut, and counted
