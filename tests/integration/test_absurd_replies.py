"""Devices whose replies are absurd: they harm themselves alone, with and without D2D."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, MetricRecord

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from hffm_flower.records import MASS, MODULES, mass_record, modules_of, modules_record, update_of
from hffm_flower.session.preflight import check
from tests.support.exchange import PLANS
from tests.support.kinds import KINDS
from tests.support.played import RecordingApp, play

CULPRIT = 2
Spoil = Callable[[Message], None]


def no_figures(reply: Message) -> None:
    del reply.content["metrics"]


def negative_work(reply: Message) -> None:
    reply.content["metrics"] = MetricRecord({"loss": 1.0, "examples": 1, "flops": -1.0})


def endless_work(reply: Message) -> None:
    reply.content["metrics"] = MetricRecord({"loss": 1.0, "examples": 1, "flops": 1e308})


def huge_values(reply: Message) -> None:
    state = modules_of(reply.content)
    reply.content[MODULES] = modules_record(
        {k: {n: np.full_like(a, 1e25) for n, a in s.items()} for k, s in state.items()}
    )


def huge_mass(reply: Message) -> None:
    reply.content[MASS] = mass_record(dict.fromkeys(update_of(reply.content).mass, 1e30))


def wrong_rank(reply: Message) -> None:
    """Twice the rank that the device is known to have."""
    state = {
        key: {
            name: np.concatenate([a, a], int("lora_B" in name)) if "lora_" in name else a
            for name, a in tensors.items()
        }
        for key, tensors in modules_of(reply.content).items()
    }
    reply.content[MODULES] = modules_record(state)


class Absurd(RecordingApp):
    """One device spoils every training reply, of every segment."""

    def __init__(self, spoil: Spoil, culprit: int = CULPRIT) -> None:
        super().__init__()
        self.spoil, self.culprit = spoil, culprit

    def answer(
        self, message: Message, context: Context, *, index: int, kind: str, t: int
    ) -> Message:
        reply = super().answer(message, context, index=index, kind=kind, t=t)
        if index == self.culprit and kind == "train" and reply.has_content():
            self.spoil(reply)
        return reply


@pytest.mark.parametrize("plan", ["none", *PLANS])
@pytest.mark.parametrize(
    ("spoil", "counts"),
    [(no_figures, True), (negative_work, True), (endless_work, True),
     (huge_values, False), (huge_mass, False)],
)  # fmt: skip
def test_the_others_go_on(
    tiny: RunConfig, tmp_path: Path, plan: str, spoil: Spoil, counts: bool
) -> None:
    config = tiny.with_values(
        method="edge-only", tree__edges=1, server__quorum=0.1, rounds=2, d2d__plan=plan,
        radio__links="nearest",
    )  # fmt: skip
    run = play(config, tmp_path / "out", app=Absurd(spoil))
    assert run.error is None
    for report in run.rounds:
        assert set(report.devices) >= {1, 3, 4, 5}
        assert (CULPRIT in report.devices) == counts
        assert (str(CULPRIT) in report.dropped) != counts
        assert 0 < report.latency_s < 1e6
        assert 0 < report.energy_j < 1e6
        assert report.loss_sum < 1e3


@pytest.mark.parametrize(
    "changes", [{"radio__tx_power_mw": 1e-30}, {"radio__noise_figure_db": 300.0}]
)
def test_a_device_out_of_reach_is_named_before_the_run(
    tiny: RunConfig, changes: dict[str, float]
) -> None:
    with pytest.raises(ConfigError, match=r"device 0, \d+ m from its edge"):
        check(tiny.with_values(**changes))


@pytest.mark.parametrize("kind", ["lora-ffa", "lora-alternate", "lora-exact"])
@pytest.mark.parametrize("plan", ["none", "relay"])
def test_a_wrong_rank_costs_its_sender_alone(
    tiny: RunConfig, tmp_path: Path, kind: str, plan: str
) -> None:
    """Also of the first device of an edge, with which all others are compared."""
    config = tiny.with_values(
        method="edge-only", tree__edges=1, server__quorum=0.1, rounds=2, d2d__plan=plan,
        d2d__summing=False, radio__links="nearest", **KINDS[kind],
    )  # fmt: skip
    run = play(config, tmp_path / "out", app=Absurd(wrong_rank, culprit=1))
    assert run.error is None
    assert [r.devices for r in run.rounds] == [[2, 3, 4, 5]] * 2
    assert all("1" in r.dropped for r in run.rounds)
