"""Where tensors live, on machines that are not here."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from hffm_flower import accelerator
from hffm_flower.accelerator import choose_device, memory_bytes, mixed_precision
from hffm_flower.errors import ConfigError


def machine(*, cuda: int = 0, mps: bool = False, bf16: bool = True) -> SimpleNamespace:
    """What of torch is asked, on a machine with so many CUDA devices."""
    return SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: cuda > 0,
            device_count=lambda: cuda,
            is_bf16_supported=lambda: bf16,
        ),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps)),
    )


@pytest.mark.parametrize(
    ("name", "here", "chosen"),
    [
        ("auto", machine(), "cpu"),
        ("auto", machine(mps=True), "mps"),
        ("auto", machine(cuda=1), "cuda"),
        ("auto", machine(cuda=2, mps=True), "cuda"),
        ("cpu", machine(cuda=2, mps=True), "cpu"),
        ("mps", machine(cuda=2, mps=True), "mps"),
        ("cuda:0", machine(cuda=1), "cuda:0"),
        ("cuda:1", machine(cuda=2), "cuda:1"),
    ],
)
def test_the_device_asked_for_or_the_best(name: str, here: SimpleNamespace, chosen: str) -> None:
    assert choose_device(name, backend=here) == torch.device(chosen)


@pytest.mark.parametrize(
    ("name", "here", "allowed"),
    [
        ("cuda", machine(), "auto, cpu"),
        ("cuda:1", machine(cuda=1), "auto, cuda, cuda:0, cpu"),
        ("mps", machine(cuda=1), "auto, cuda, cuda:0, cpu"),
        ("gpu", machine(mps=True), "auto, mps, cpu"),
        ("", machine(), "auto, cpu"),
    ],
)
def test_a_device_that_is_not_here_is_told(name: str, here: SimpleNamespace, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_device(name, backend=here)
    assert str(caught.value) == f"device {name!r} is not here; allowed: {allowed}"
    assert caught.value.key == "train.device"


@pytest.mark.parametrize(
    ("device", "precision", "bf16", "mixed"),
    [
        ("cuda", "auto", True, True),
        ("cuda:1", "auto", True, True),
        ("cuda", "auto", False, False),
        ("cuda", "fp32", True, False),
        ("cuda", "bf16", False, True),
        ("cpu", "auto", True, False),
        ("cpu", "fp32", True, False),
        ("cpu", "bf16", True, True),
        ("mps", "auto", True, False),
    ],
)
def test_precision(
    monkeypatch: pytest.MonkeyPatch, device: str, precision: str, bf16: bool, mixed: bool
) -> None:
    asked: list[tuple[str, torch.dtype]] = []

    def autocast(kind: str, *, dtype: torch.dtype) -> contextlib.AbstractContextManager[None]:
        asked.append((kind, dtype))
        return contextlib.nullcontext()

    monkeypatch.setattr(torch, "autocast", autocast)
    here = machine(cuda=2, bf16=bf16)
    with mixed_precision(torch.device(device), precision, backend=here):
        pass
    assert asked == ([(device.partition(":")[0], torch.bfloat16)] if mixed else [])


def test_precision_is_what_the_forward_pass_runs_in() -> None:
    a = torch.ones(2, 2)
    cpu = torch.device("cpu")
    with mixed_precision(cpu, "auto"):
        assert (a @ a).dtype == torch.float32
    with mixed_precision(cpu, "bf16"):
        assert (a @ a).dtype == torch.bfloat16
    assert (a @ a).dtype == torch.float32


@pytest.mark.parametrize(
    ("told", "most"), [("max\n", 2**30), ("4096\n", 4096), (f"{2**60}", 2**30)]
)
def test_memory_is_that_of_the_machine_or_of_its_container(
    told: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "limit").write_text(told)
    monkeypatch.setattr(accelerator, "LIMITS", (tmp_path / "none", tmp_path / "limit"))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2**30))
    assert memory_bytes(torch.device("cpu")) == most
