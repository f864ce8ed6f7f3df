"""The ClientApp: a device answers for its profile, its initial modules, training, evaluation.

Training with a plan is in `clients.exchange`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.channels import peer_address
from clients.evaluator import tally
from clients.exchange import train_among_peers
from clients.needs import check_room
from clients.resident import Device, own_data
from clients.store import DeviceStore
from clients.trainer import Progress, train
from hffm_flower.accelerator import choose_device
from hffm_flower.config import RunConfig
from hffm_flower.errors import ProtocolError
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.modules import ModuleKey, digest, shapes
from hffm_flower.payload import own_upload, plan_of
from hffm_flower.records import (
    CONFIG,
    MASS,
    MODULES,
    PROTOCOL,
    mass_record,
    modules_of,
    modules_record,
    number,
    text,
)
from hffm_flower.tasks import definitions
from hffm_flower.version import __version__

app = ClientApp()


@app.query("profile")
def profile(message: Message, context: Context) -> Message:
    """What this device is, and the layout of its modules; an error where they do not fit here."""
    with _one_thread():
        device = _device(context)
        check_room(device)
        own, model = device.profile, device.model()
        answer = {
            "version": f"{__version__} (protocol {PROTOCOL})",
            "settings": device.config.shared(),
            "index": own.index,
            "modalities": own.modalities,
            "tasks": dict(own.tasks),
            "wanted": own.wanted,
            "tests": dict(own.tests),
            "layout": shapes(model.state()),
            "ranks": {str(key): rank for key, rank in model.ranks.items()},
            "definitions": definitions(device.config.data.tasks),
            "skipped": device.own.report() if device.own else {},
            "peer": peer_address(context.node_config),
            "rank": own.rank,
            "experts": list(own.experts),
            "lent": own.lent,
        }
    record = ConfigRecord({"json": json.dumps(answer)})
    return Message(RecordDict({"profile": record}), reply_to=message)


@app.query("init")
def init(message: Message, context: Context) -> Message:
    """Initial modules that were asked for, and digests of the others."""
    with _one_thread():
        model = _device(context).model()
        state = model.initial(model.keys)
    send = _keys(text(message.content, CONFIG, "send"))
    compare = _keys(text(message.content, CONFIG, "digest"))
    if lacking := sorted(str(k) for k in {*send, *compare} - state.keys()):
        raise ProtocolError(f"this device does not hold {', '.join(lacking)}")
    digests = {str(k): digest(state[k]) for k in compare}
    content = RecordDict(
        {
            MODULES: modules_record({k: state[k] for k in send}),
            "digests": ConfigRecord({"json": json.dumps(digests)}),
        }
    )
    return Message(content, reply_to=message)


@app.train()
def train_round(message: Message, context: Context) -> Message:
    """One edge round of local training, or a segment of it.

    Replies hold the modules that got a gradient; with a plan, what the plan says.
    """
    t = number(message.content, CONFIG, "t")
    if plan_of(message.content) is not None:
        with _one_thread():
            device = _device(context)
            store = _store(context, device)
            answer = train_among_peers(message, device, store, context.node_config, t=t)
        return Message(answer, reply_to=message)
    segment = number(message.content, CONFIG, "segment", default=0)
    segments = number(message.content, CONFIG, "segments", default=1)
    with _one_thread():
        device = _device(context)
        model, sent, store = _assemble(message, context, device, before=t)
        config, progress = device.config, None
        if segment:
            saved, own_state = store.read_segment(t, segment - 1)
            progress = Progress.of(saved)
            model.load({k: v for k, v in own_state.items() if k not in sent})
        own = set(model.keys) - sent
        done = train(
            model, device.train_data(), config.train,
            t=t, rounds=config.rounds, seed=config.seed, device_index=device.profile.index,
            segment=segment, segments=segments, progress=progress,
            resting=device.resting(t), personal=own,
        )  # fmt: skip
        if segment + 1 < segments:
            store.save_segment(t, segment, done.progress.tensors(), model.state(own))
        elif own:
            store.publish(model.state(own), t)
        mass = {k: n for k, n in done.mass.items() if k in sent}
        content = RecordDict(
            {
                MODULES: modules_record(model.state(mass)),
                MASS: mass_record(mass),
                "metrics": MetricRecord(
                    {"loss": done.loss, "examples": done.examples, "flops": done.flops}
                ),
            }
        )
    return Message(content, reply_to=message)


@app.query("upload")
def upload(message: Message, context: Context) -> Message:
    """The device's own update of an edge round whose parcels did not reach the edge."""
    t = number(message.content, CONFIG, "t")
    try:
        names = json.loads(text(message.content, CONFIG, "keys"))
        keys = [ModuleKey.parse(name) for name in names]
    except (ValueError, TypeError, AttributeError) as error:
        raise ProtocolError(f"keys of modules cannot be read: {error}") from error
    sent = own_upload(_store(context, _device(context)).kept(t), keys)
    content = RecordDict({MODULES: modules_record(sent.state), MASS: mass_record(sent.mass)})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate_round(message: Message, context: Context) -> Message:
    """Counts on the device's test shards, of the modules sent plus its own."""
    t = number(message.content, CONFIG, "t")
    with _one_thread():
        device = _device(context)
        model, _, _ = _assemble(message, context, device, before=t + 1)
        found = tally(
            model, device.train_data(), device.tests(), batch_size=device.config.train.batch_size
        )
        scores: dict[str, int | float | list[int] | list[float]] = {
            f"{split}/{task}": [float(s.correct), float(s.total), s.value]
            for split, task, s in found
        }
    return Message(RecordDict({"scores": MetricRecord(scores)}), reply_to=message)


def _device(context: Context) -> Device:
    config = RunConfig.from_flwr(context.run_config)
    index = context.node_config.get("partition-id")
    if not isinstance(index, int):
        raise ProtocolError(
            "this node does not say which device it is; start it with --node-config partition-id=K"
        )
    file = str(context.node_config.get("own-data", ""))
    own = own_data(config, file, context.run_id) if file else None
    return Device(config, index, choose_device(config.train.device), own)


def _assemble(
    message: Message, context: Context, device: Device, *, before: int
) -> tuple[MultimodalModel, set[ModuleKey], DeviceStore]:
    """The model with the modules sent; modules not sent are the device's own."""
    sent = modules_of(message.content)
    model = device.model(sent)
    store = _store(context, device)
    if set(model.keys) - set(sent):
        model.load(store.read(before))
    model.load(sent)
    return model, set(sent), store


def _store(context: Context, device: Device) -> DeviceStore:
    state_dir = device.config.paths.state or str(device.config.cache_dir() / "state")
    run = device.config.deploy.run or str(context.run_id)
    return DeviceStore(Path(state_dir) / run, device.profile.index)


def _keys(words: str) -> list[ModuleKey]:
    return [ModuleKey.parse(word) for word in words.split()]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread: the same bits, and no oversubscription, on every path."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
