"""What devices carry follows from their memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from clients import equipment
from clients.equipment import expert_mib, lora_mib, memories_mib
from clients.resident import all_profiles
from clients.spec import model_spec
from hffm_flower.assignment import Assignment, assign
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from tests.support.kinds import KINDS


def test_experts_are_lent_only_where_there_is_room(tiny: RunConfig) -> None:
    experts = tiny.with_values(**KINDS["experts"]).with_values(
        model__experts_held=0, model__experts_lent=1, model__expert_copies=1
    )
    size = expert_mib(model_spec(experts))
    config = experts.with_values(tree__memory_mib=f"{0.2 * size} {1.5 * size} {4.5 * size}")
    memories = memories_mib(config)
    for profile in all_profiles(config):
        carried = len(profile.experts) + profile.lent
        assert carried * size <= memories[profile.index]
        assert profile.lent == (not profile.idle and memories[profile.index] > 2 * size)
        if not profile.idle and memories[profile.index] > size:
            assert profile.experts
    held = {j for profile in all_profiles(config) for j in profile.experts}
    assert held == {0, 1, 2}


def test_a_placement_that_may_differ_elsewhere_is_refused(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hurried(*args: Any, **kwargs: Any) -> Assignment:
        return dataclasses.replace(assign(*args, **kwargs), proven=False)

    monkeypatch.setattr(equipment, "assign", hurried)
    with pytest.raises(ConfigError, match="no best placement of 3 experts on 5 devices"):
        all_profiles(tiny.with_values(**KINDS["experts"]))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_device_has_the_highest_rank_that_fits(tiny: RunConfig, scale: float) -> None:
    config = tiny.with_values(**KINDS["lora-exact"])
    spec = model_spec(config)
    one = lora_mib(spec, 1)
    config = config.with_values(tree__memory_mib=f"{2.5 * one * scale} {4 * one * scale}")
    memories = memories_mib(config)
    for profile in all_profiles(config):
        fitting = [r for r in (2, 3, 5) if r * one <= memories[profile.index]]
        assert profile.rank == max(fitting)
