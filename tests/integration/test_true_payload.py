"""The payload of the corrected case study is what devices of a default run really send."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clients.resident import Device
from hffm_flower.config import RunConfig
from hffm_flower.modules import ModuleKey
from hffm_flower.records import to_bytes
from hffm_flower.session.preflight import check
from hffm_flower.wireless.case_study import CaseStudy


def test_it_is_the_mean_over_the_training_devices(tmp_path: Path) -> None:
    config = RunConfig().with_values(paths__cache=str(tmp_path))
    plan = check(config)
    size: dict[tuple[ModuleKey, ...], int] = {}
    for profile, keys in zip(plan.profiles, plan.keys, strict=True):
        if not profile.idle and keys not in size:
            device = Device(config, profile.index, torch.device("cpu"))
            size[keys] = len(to_bytes(device.model().state()))
    sent = [size[k] for p, k in zip(plan.profiles, plan.keys, strict=True) if not p.idle]
    assert len(sent) == 38
    assert CaseStudy().true_payload_bits == pytest.approx(8 * sum(sent) / len(sent), abs=8)
