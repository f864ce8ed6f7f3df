"""Folders as a device's owner would have them: pictures with questions, sensor recordings."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hffm_flower.data.dataset import Item
from hffm_flower.data.own import OwnData, read_own
from hffm_flower.models.encoders.encoder import Tokens, full
from hffm_flower.seeding import generator
from tests.support.tiny import ANSWERS
from tests.support.tiny_encoders import TinyImage

MODALITIES = ("image", "text", "sensor")


class TinyPixels(TinyImage):
    """Reads pictures too: grey, 6 x 4."""

    def encode(self, items: Sequence[Item]) -> dict[str, Tokens]:
        """Tokens of arrays as they are, of pictures their lines."""
        values = torch.from_numpy(np.stack([_pixels(item) for item in items]))
        return {"image": full(values), "image-grid": full(values.flip(-1))}


def _pixels(item: Item) -> NDArray[np.float32]:
    raw = item.load()
    if isinstance(raw, Image.Image):
        grey = np.asarray(raw.convert("L").resize((6, 4)), np.float32)
        return np.asarray(grey / 128 - 0.5, np.float32)
    return np.asarray(raw, np.float32)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A CSV file with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def write_device(path: Path, tables: Mapping[str, Mapping[str, object]]) -> Path:
    """The TOML file of a device, with a table ``[data.TASK]`` for each task."""
    lines = []
    for task, table in tables.items():
        lines.append(f"[data.{task}]")
        lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value) if isinstance(value, int | float) else f'"{value}"'


def picture(path: Path, label: int = 0, *, seed: int = 0, size: tuple[int, int] = (6, 4)) -> str:
    """A noisy picture whose column ``label`` is bright; gives its name."""
    rng = generator(seed, "picture", path.name)
    grey = rng.integers(0, 90, size[::-1])
    grey[:, label % size[0]] = 230
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)).save(path)
    return path.name


def camera_folder(folder: Path, count: int = 20) -> Path:
    """Pictures of tiny-vqa with questions, and what cannot be used: 2 + 1 + 1 lines."""
    rows: list[tuple[str, str, str]] = []
    for i in range(count):
        name = picture(folder / f"{i:03}.png", i % 4)
        rows.append(
            (name, ("go", "go far", "go very far", "far")[i % 4], f" {ANSWERS[i % 4].upper()}")
        )
    (folder / "broken.png").write_bytes((folder / "000.png").read_bytes()[:60])
    rows += [("000.png", "up", "zenith"), ("001.png", "up", ""), ("broken.png", "go", "north")]
    write_csv(
        folder / "examples.csv", ("image", "text", "answer"), [*rows, ("no.png", "go", "east")]
    )
    return folder


def sensor_folder(folder: Path, recordings: int = 10, windows: int = 2) -> Path:
    """Recordings of tiny-move, windows of 5 samples and 3 channels; one has another answer."""
    for i in range(recordings):
        rng = generator(i, "recording")
        samples = 9.8 + 0.4 * rng.standard_normal((5 * windows + 2, 3))
        samples[:, i % 2] += 3.0
        write_csv(folder / f"r{i}.csv", ("ax", "ay", "az"), samples.tolist())
    rows = [(f"r{i}.csv", ANSWERS[i % 2]) for i in range(recordings - 1)]
    write_csv(
        folder / "examples.csv", ("file", "answer"), [*rows, (f"r{recordings - 1}.csv", "Jump")]
    )
    return folder


def opened(
    path: Path,
    tasks: Sequence[str] = ("tiny-vqa", "tiny-move", "tiny-box"),
    served: Sequence[str] = MODALITIES,
    seed: int = 0,
) -> OwnData:
    """What the file names, for a run of the tiny tasks."""
    return read_own(path, tasks=tasks, served=served, seed=seed)
