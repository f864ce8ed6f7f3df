"""Where tensors live: the one place that chooses a device and a precision."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Final

import psutil
import torch

from hffm_flower.errors import ConfigError

LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where a control group has its limit, in versions 2 and 1."""


def choose_device(name: str = "auto", *, backend: Any = torch) -> torch.device:
    """The device called ``name``; ``auto`` takes cuda, then mps, then cpu.

    Args:
        name: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.
        backend: Stands in for torch in tests.

    Raises:
        ConfigError: There is no such device here.
    """
    here = ["cpu"]
    if backend.backends.mps.is_available():
        here.insert(0, "mps")
    if backend.cuda.is_available():
        here[:0] = ["cuda", *(f"cuda:{i}" for i in range(backend.cuda.device_count()))]
    if name == "auto":
        return torch.device(here[0])
    if name not in here:
        raise ConfigError(
            f"device {name!r} is not here; allowed: auto, {', '.join(here)}", key="train.device"
        )
    return torch.device(name)


def memory_bytes(device: torch.device) -> int:
    """Memory of ``device``: of an accelerator, or what this machine or container may use [byte]."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    most = int(psutil.virtual_memory().total)
    for file in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # none, or "max"
            most = min(most, int(file.read_text()))
    return most


def check_gpu_share(share: float, *, backend: Any = torch) -> None:
    """Refuse a share of a GPU per actor where there is no GPU.

    Raises:
        ConfigError: ``share`` is above what this machine has.
    """
    count = backend.cuda.device_count() if backend.cuda.is_available() else 0
    if share > count:
        raise ConfigError(
            f"{share:g} GPUs per actor, but this machine has {count} CUDA devices",
            key="simulation.gpus-per-actor",
        )


def mixed_precision(
    device: torch.device, precision: str, *, backend: Any = torch
) -> contextlib.AbstractContextManager[Any]:
    """Context in which the forward pass runs: bfloat16 where asked for, or where it pays.

    ``auto`` means bfloat16 on a CUDA device that has it, else float32. Results on CPU are
    float32 and the same bits every time unless ``bf16`` is asked for.
    """
    has_bf16 = device.type == "cuda" and backend.cuda.is_bf16_supported()
    if precision == "bf16" or (precision == "auto" and has_bf16):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
