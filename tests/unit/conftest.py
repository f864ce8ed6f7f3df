"""Certificates that tests only read."""

from __future__ import annotations

from pathlib import Path

import pytest

from hffm_flower.pki_folder import create
from tests.support.certificates import PARTIES


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pki") / "certs"
    create(root, PARTIES)
    return root
