"""Markers by folder, one torch thread, and a federation of tiny parts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from hffm_flower.config import RunConfig

TESTS = Path(__file__).parent
BY_FOLDER = ("e2e", "gpu")
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--slow``: also the tests that take minutes."""
    parser.addoption("--slow", action="store_true", help="also run tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    """No test sees the tasks that a user has prepared on this machine."""
    os.environ["HFFM_DATA"] = str(TESTS / "no-tasks")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Everything below ``tests/e2e`` is marked ``e2e``, below ``tests/gpu`` ``gpu``."""
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))
        if not item.path.is_relative_to(TESTS):
            continue
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in BY_FOLDER:
            item.add_marker(getattr(pytest.mark, folder))


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RunConfig]:
    """Settings of a run of tiny parts: six devices on two edges, everything in ``tmp_path``."""
    from tests.support import tiny as parts

    parts.register(monkeypatch)
    parts.forget()
    yield parts.settings(tmp_path)
    parts.forget()
