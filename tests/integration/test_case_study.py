"""The run of the case study, from its file, on a small random ViLT and small generated data.

The small ViLT is `transformers`' own class with every part of the published architecture: pre-norm
layers, GELU, positions of words and patches, types, both [CLS], the last norm and the pooler; its
wiring, adapters in each layer and methods are those of the file. It is smaller in numbers: 3 layers
of width 32 with 2 heads and an FFN of 48, 64 patches of 4 pixels, 22 words, bottlenecks of 8. One
round at the published size is a slow test here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers

import hffm_flower
from hffm_flower.config import RunConfig
from hffm_flower.data.dataset import Item
from hffm_flower.session.entries import entries
from hffm_flower.session.preflight import check
from tests.support import fused, tiny
from tests.support.checkpoints import make_vilt
from tests.support.played import Played, play

FILE = Path(__file__).parents[2] / "deploy" / "runs" / "case-study.toml"
METHODS = ("star", "edge-only", "edge-only+d2d", "h-fedfm-e2", "h-fedfm-e2+d2d")


@pytest.fixture(scope="module")
def vilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vilt(tmp_path_factory.mktemp("vilt") / "vilt")


@pytest.fixture(autouse=True)
def swatches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fused.register(monkeypatch)
    yield
    tiny.forget()


def stand_in(root: Path, vilt: Path, **changes: object) -> RunConfig:
    """The case study with another checkpoint, other tasks, fewer devices and rounds."""
    config = RunConfig.load(FILE)
    small: dict[str, object] = {
        "rounds": 2, "tree__devices": 6, "tree__edges": 2, "data__tasks": "swatch4 swatch4-free",
        "data__alpha": 1.0, "data__train_per_answer": 12, "data__test_per_answer": 12,
        "model__backbone": f"hf:{vilt}", "model__encoders": f"image=hf:{vilt} text=hf:{vilt}",
        "model__adapter_rank": 8, "train__device": "cpu", "server__deadline_s": 60.0,
        "paths__cache": str(root / "cache"), "paths__state": str(root / "state"),
    }  # fmt: skip
    return config.with_values(**{**small, **changes})


def test_the_file_is_the_published_setting() -> None:
    config = RunConfig.load(FILE)
    assert (config.tree.devices, config.tree.edges) == (40, 10)
    assert (config.data.alpha, config.data.min_tasks, config.data.full_modality_share) == (
        0.1, 2, 1.0,
    )  # fmt: skip
    assert (config.model.adapter_rank, config.model.adapter_layers) == (256, 0)
    assert config.model.adapter_wiring == "published"
    assert (config.train.batch_size, config.train.learning_rate) == (8, 1e-4)
    assert config.train.final_learning_rate == 1.0
    assert all(f"={config.model.backbone}" in e for e in config.model.encoders)
    assert [e.name for e in entries(config, ["star", "h-fedfm-e2", "h-fedfm-e8"], [1])]


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_method_runs_end_to_end(method: str, vilt: Path, tmp_path: Path) -> None:
    (entry,) = entries(stand_in(tmp_path, vilt), [method], [1])
    played = finished(entry.config, tmp_path / "out")
    assert len(played.rounds) == entry.config.rounds
    assert all(not report.dropped for report in played.rounds)
    assert set(played.result["summary"]["per_task"]) == {"swatch4", "swatch4-free"}


def finished(config: RunConfig, out: Path) -> Played:
    assert check(config).idle == ()
    played = play(config, out)
    assert played.error is None
    return played


@pytest.mark.parametrize("wiring", ["published", "corrected"])
def test_it_learns_with_a_cached_prefix_and_predicts(
    wiring: str, vilt: Path, tmp_path: Path
) -> None:
    config = stand_in(
        tmp_path, vilt, model__adapter_wiring=wiring, model__adapter_layers=2,
        train__learning_rate=0.01, train__local_epochs=2, rounds=4, tree__period=2,
        data__alpha=100.0, tree__devices=2, tree__edges=1, data__tasks="swatch4", data__min_tasks=1,
    )  # fmt: skip
    played = finished(config, tmp_path / "out")
    losses = [report.loss_sum / report.trained for report in played.rounds]
    assert losses[-1] < 0.8 * losses[0]
    model = hffm_flower.load(tmp_path / "out")
    item: Item = fused.Swatches("swatch4", train_per_answer=1, test_per_answer=4, seed=1).items(
        "image", "test", [0]
    )[0]
    answer = model.predict("swatch4", image=item.load(), text="color?")
    assert answer in fused.COLOURS


@pytest.mark.slow
def test_a_round_of_the_published_size(tmp_path: Path) -> None:
    """12 layers of 768, 144 patches, two bottlenecks of 256 in each; 32 examples, one pass."""
    full = make_vilt(tmp_path / "vilt", **transformers.ViltConfig().to_dict())
    config = stand_in(
        tmp_path, full, rounds=1, tree__devices=2, tree__edges=1, model__adapter_rank=256,
        data__train_per_answer=4, data__test_per_answer=4, data__alpha=100.0,
    )  # fmt: skip
    played = finished(config, tmp_path / "out")
    (report,) = played.rounds
    assert (report.devices, report.dropped, report.trained) == ([0, 1], {}, 32)
    adapters = [state for key, state in played.files.cloud().items() if key.kind == "adapter"]
    assert len(adapters) == 12
    assert all(a["first.down.weight"].shape == (256, 768) for a in adapters)
    assert set(played.result["summary"]["per_task"]) == {"swatch4", "swatch4-free"}
