"""A training step of full-size ViLT: adapters in all layers, in the last ones, and memory.

    python -m benchmarks.vilt [--steps 2] [--plain] [--checkpoint FOLDER]

Random weights of the published architecture unless a folder is given. CPU seconds of one thread
per step of eight examples. Cached: the layers in front of the adapted ones have been run once.
``--plain`` adds the same model as a loop over `transformers`' own ViLT. Before that, what
``hffm plan-memory`` says is compared with the peak of a child process that trains two steps and
evaluates; ``--steps 0`` does nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from clients.evaluator import tally
from clients.resident import Device, frozen_layers
from clients.spec import model_spec
from clients.trainer import train
from hffm_flower.config import RunConfig
from hffm_flower.models.adapters import Bottleneck
from hffm_flower.models.encoders.encoder import Tokens
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.session.memory import estimates, machine
from hffm_flower.session.preflight import check

BATCH, WORDS, WIDTH = 8, 12, 768
CPU = torch.device("cpu")
TASK = "emojivqa10"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.child:
        print(json.dumps(one_step(RunConfig.from_flwr(json.loads(chosen.child)))))
        return
    with tempfile.TemporaryDirectory() as root:
        folder = chosen.checkpoint or make(Path(root) / "vilt")
        for changes in ({}, {"train__checkpointing": True}, {"model__adapter_layers": 2}):
            print_memory(settings(folder, Path(root), **changes), changes)
        if chosen.steps:
            print_times(folder, Path(root), chosen.steps, plain=chosen.plain)


def print_times(folder: Path, root: Path, steps: int, *, plain: bool) -> None:
    """CPU seconds of a step, and how many times quicker than with adapters in all layers."""
    first = 0.0
    for last in (0, 4, 2, 1):
        config = settings(folder, root, model__adapter_layers=last)
        seconds = measure(step_of(config), steps)
        first = first or seconds
        name = f"last {last}, cached prefix" if last else "all 12 layers"
        print(f"{name:32} {seconds:7.2f} s  x {first / seconds:.2f}", flush=True)
    if plain:
        seconds = measure(plain_step(folder), steps)
        print(f"{'all 12, transformers':32} {seconds:7.2f} s  x {first / seconds:.2f}", flush=True)


def make(folder: Path) -> Path:
    """ViLT-B/32 of random weights, with a tokenizer of a few words."""
    torch.manual_seed(0)
    transformers.ViltModel(transformers.ViltConfig()).save_pretrained(folder)
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "this", "group", "?")
    vocabulary = {word: i for i, word in enumerate(words)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    transformers.ViltImageProcessorPil().save_pretrained(folder)
    return folder


def settings(folder: Path, root: Path, **changes: Any) -> RunConfig:
    """One device with emoji and questions."""
    base = {
        "tree__devices": 1, "tree__edges": 1, "data__tasks": TASK, "data__full_modality_share": 1.0,
        "data__train_per_answer": 2, "data__test_per_answer": 8,
        "model__backbone": f"hf:{folder}", "model__encoders": f"image=hf:{folder} text=hf:{folder}",
        "model__adapter_rank": 256, "model__adapter_wiring": "corrected",
        "train__batch_size": BATCH, "train__local_steps": 2, "train__device": "cpu",
        "train__learning_rate": 1e-4, "simulation__actors": 1, "paths__cache": str(root / "cache"),
    }  # fmt: skip
    return RunConfig().with_values(**{**base, **changes})


def step_of(config: RunConfig) -> Callable[[], None]:
    """A step of this package, on tokens of usual lengths."""
    model = MultimodalModel(
        model_spec(config), [TASK], ("image", "text"), frozen_layers(config, CPU)
    )
    mask = torch.zeros(BATCH, 40, dtype=torch.bool)
    mask[:, :WORDS] = True
    inputs = {
        "image": Tokens(torch.randn(BATCH, 145, WIDTH), torch.ones(BATCH, 145, dtype=torch.bool)),
        "text": Tokens(torch.randn(BATCH, 40, WIDTH), mask),
    }
    weights = [p for p in model.parts.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    targets = torch.arange(BATCH)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        output = model(TASK, model.trimmed(inputs))
        torch.autograd.backward(model.head(TASK).loss(output, targets))
        optimizer.step()

    return step


def plain_step(folder: Path) -> Callable[[], None]:
    """The same adapters in `transformers`' ViLT, texts padded to 40, nothing left out."""
    network: Any = transformers.ViltModel.from_pretrained(folder).requires_grad_(False)
    adapters = nn.ModuleList(Bottleneck(WIDTH, 256) for _ in network.encoder.layer)
    head = nn.Linear(WIDTH, 10)
    for layer, adapter in zip(network.encoder.layer, adapters, strict=True):
        layer.output.register_forward_hook(lambda _, __, out, a=adapter: out + a(out))
    optimizer = torch.optim.AdamW([*adapters.parameters(), *head.parameters()], lr=1e-4)
    mask = torch.zeros(BATCH, 40, dtype=torch.long)
    mask[:, :WORDS] = 1
    inputs = {
        "input_ids": torch.randint(5, 1000, (BATCH, 40)), "attention_mask": mask,
        "pixel_values": torch.randn(BATCH, 3, 384, 384),
    }  # fmt: skip

    def step() -> None:
        optimizer.zero_grad()
        pooled = network(**inputs).pooler_output
        torch.autograd.backward(nn.functional.cross_entropy(head(pooled), torch.arange(BATCH)))
        optimizer.step()

    return step


def measure(step: Callable[[], None], steps: int) -> float:
    """Least CPU seconds of a step, after one that does not count."""
    step()
    taken = []
    for _ in range(steps):
        began = time.process_time()
        step()
        taken.append(time.process_time() - began)
    return min(taken)


def one_step(config: RunConfig) -> dict[str, int]:
    """Two steps of the client's trainer, an evaluation, and this process's memory [byte]."""
    import resource

    device = Device(config, 0, CPU)
    model, data = device.model(), device.train_data()
    train(model, data, config.train, t=1, rounds=1, seed=config.seed, device_index=0)
    list(tally(model, data, device.tests(), batch_size=config.train.batch_size))
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def print_memory(config: RunConfig, changes: object) -> None:
    """What was estimated, and what a child process took."""
    plan = check(config)
    (found,) = estimates(config, plan)
    said = machine(config).needed([found])
    command = [sys.executable, __file__, "--child", json.dumps(config.to_flwr())]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=3600)
    peak = json.loads(told.stdout.splitlines()[-1])["peak"]
    print(
        f"{changes or 'default'!s:40} said {said / 2**20:6.0f} MiB, took {peak / 2**20:6.0f} MiB"
        f"  ({said / peak - 1:+.1%})",
        flush=True,
    )


if __name__ == "__main__":
    main()
