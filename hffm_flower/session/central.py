"""Method ``central``: the same model on the devices' pooled data, the upper bound.

Data are pooled as the devices hold them: an example whose device collects no text has
none here either. Training takes the same number of passes, with the optimiser reset at
the same boundaries; evaluation uses the same shards.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

import torch

from clients.evaluator import tally
from clients.examples import TaskData, pool
from clients.resident import Device, encoder_of, frozen_layers, release_examples
from clients.spec import model_spec, resting
from clients.trainer import train
from hffm_flower.accelerator import choose_device
from hffm_flower.config import RunConfig
from hffm_flower.errors import HffmError, Interrupted
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.models.parts import module_keys
from hffm_flower.report import RoundReport
from hffm_flower.result import build, means, task_facts
from hffm_flower.runfiles import RunFiles
from hffm_flower.schedule import METHODS, Schedule
from strategies.federation import Event


def pooled_model(config: RunConfig, devices: Iterable[Device], on: torch.device) -> MultimodalModel:
    """One model with every module that any device has, at its initial values."""
    profiles = [d.profile for d in devices]
    modalities = {m for p in profiles for m in p.modalities}
    spec = model_spec(config)
    keys = {k for p in profiles for k in module_keys(p.tasks, p.modalities, spec, p.experts)}
    frozen = frozen_layers(config, on)
    return MultimodalModel(
        spec, config.data.tasks, modalities, frozen,
        keys=keys, tails=lambda m: encoder_of(config, m, on).tail(),
    ).to(on)  # fmt: skip


def train_pooled(
    config: RunConfig, files: RunFiles, *, event: Event, stop: threading.Event
) -> None:
    """Train on the pooled data and write the run's folder.

    Raises:
        HffmError: What ended the run early.
    """
    torch.set_num_threads(1)
    on = choose_device(config.train.device)
    devices = [Device(config, k, on) for k in range(config.tree.devices)]
    event({"event": "wait", "phase": "encoding the data", "t": 0, "done": 0, "of": len(devices)})
    parts: list[TaskData] = []
    for done, device in enumerate(devices, start=1):
        _stop_if(stop)
        parts += device.train_data()
        event({"event": "wait", "phase": "encoding the data", "t": 0, "done": done,
               "of": len(devices)})  # fmt: skip
    data = pool(parts)
    del parts
    release_examples()
    tests: dict[str, list[TaskData]] = {}
    for split in ("iid", "skewed"):
        tests[split] = pool(part for d in devices for part in d.test_data(split))
        release_examples()
    tasks = task_facts(config.data.tasks, (d.profile for d in devices))
    model = pooled_model(config, devices, on)
    schedule = Schedule.of(
        model.keys, method=config.method, policy=METHODS[config.method].policy,
        period=1, rounds=config.rounds,
    )  # fmt: skip
    reported = schedule.exchanges(config.server.evaluate_every)
    began, status, reason = time.monotonic(), "failed", ""
    try:
        for t in range(1, config.rounds + 1):
            _stop_if(stop)
            event({"event": "wait", "phase": "training", "t": t - 1, "done": 0, "of": 1})
            done_round = train(
                model, data, config.train,
                t=t, rounds=config.rounds, seed=config.seed, device_index=0,
                resting=resting(config, model.keys, t), stopped=stop.is_set,
            )  # fmt: skip
            report = RoundReport(t, done_round.loss, done_round.examples)
            report.devices = [d.profile.index for d in devices if not d.profile.idle]
            if t in reported:
                found = tally(model, data, tests, batch_size=config.train.batch_size)
                for split, task, score in found:
                    report.add_score("cloud", split, task, score)
                report.evaluated["cloud"] = report.devices
            report.seconds = time.monotonic() - began
            files.append(report)
            files.save_cloud(model.state())
            loss = report.loss_sum / max(1, report.trained)
            event({"event": "round", "t": t, "loss": loss, "mean_global": means(report, tasks),
                   "devices": len(report.devices), "dropped": 0})  # fmt: skip
        status = "finished"
    except HffmError as error:
        status, reason = "interrupted" if isinstance(error, Interrupted) else status, str(error)
        raise
    finally:
        files.save_cloud(model.state())
        idle = {
            "idle_devices": [d.profile.index for d in devices if d.profile.idle],
            "clusters": [list(range(len(devices)))],
        }
        files.write_result(
            build(config, files.rounds(), tasks, cycle=1, status=status, reason=reason, notes=idle)
        )


def _stop_if(stop: threading.Event) -> None:
    if stop.is_set():
        raise Interrupted("stopped on request")
