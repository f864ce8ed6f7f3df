"""Federations whose encoders are checkpoints: frozen, trained in part, saved and loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image

import hffm_flower
from hffm_flower.config import RunConfig
from hffm_flower.data import DATASETS
from hffm_flower.data.dataset import Item, Split
from hffm_flower.errors import ConfigError
from hffm_flower.lora import is_lora
from hffm_flower.modules import ModuleKey
from hffm_flower.session.preflight import check
from hffm_flower.session.saved import recompute
from tests.support.checkpoints import make_bert, make_vit
from tests.support.played import play
from tests.support.tiny import TinyData

IMAGE, TEXT = ModuleKey.parse("encoder/image"), ModuleKey.parse("encoder/text")


class TinyPictures(TinyData):
    """The image-like arrays as pictures."""

    def _item(self, modality: str, split: Split, index: int) -> Item:
        item = super()._item(modality, split, index)
        if modality != "image":
            return item
        grey = (127 + 60 * cast("np.ndarray", item.load())).clip(0, 255).astype(np.uint8)
        return Item(item.digest, lambda: Image.fromarray(grey).convert("RGB"))


@pytest.fixture
def run(tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setitem(cast("dict[str, object]", DATASETS), "tiny", TinyPictures)
    image, text = make_vit(tmp_path / "vit"), make_bert(tmp_path / "bert")
    return tiny.with_values(
        rounds=3, model__backbone="small", train__learning_rate=0.003, data__train_per_answer=12,
        data__test_per_answer=8,
        model__encoders=f"image=hf:{image} text=hf:{text} sensor=tiny-sensor",
    )  # fmt: skip


def test_a_federation_trains_on_frozen_checkpoints(run: RunConfig, tmp_path: Path) -> None:
    for precision, rounds in (("fp32", 3), ("bf16", 1)):
        config = run.with_values(model__encoder_precision=precision, rounds=rounds)
        check(config)
        played = play(config, tmp_path / precision)
        assert played.error is None
        assert not any(r.dropped or r.void for r in played.rounds)
        assert rounds == 1 or played.rounds[-1].loss_sum < played.rounds[0].loss_sum
        projectors = {k.name for k in played.files.cloud() if k.kind == "projector"}
        assert projectors == {"image", "image-grid", "text", "sensor"}
    again, saved = recompute(tmp_path / "bf16")
    assert again == saved
    features = Path(run.paths.cache) / "features"
    assert len(list(features.iterdir())) == 4  # two encoders, in two precisions


def test_last_blocks_of_checkpoints_are_trained(run: RunConfig, tmp_path: Path) -> None:
    config = run.with_values(model__tune="image=lora:2:2 text=last:1")
    check(config)
    played = play(config, tmp_path / "out")
    assert played.error is None
    assert not any(r.dropped or r.void for r in played.rounds)
    assert played.rounds[-1].loss_sum < played.rounds[0].loss_sum
    cloud = played.files.cloud()
    assert is_lora(cloud[IMAGE])
    assert {name.split(".")[0] for name in cloud[IMAGE]} == {"0", "1"}
    assert any(a.any() for name, a in cloud[IMAGE].items() if "lora_B" in name)
    assert {name.split(".")[0] for name in cloud[TEXT]} == {"0"}
    model = hffm_flower.load(tmp_path / "out")
    picture = Image.new("RGB", (50, 40), (200, 20, 20))
    assert model.predict("tiny-vqa", image=picture, text="go far") in {"north", "east", "south", "west"}  # fmt: skip  # noqa: E501
    assert len(model.predict("tiny-box", image=picture)) == 4


def test_what_is_wrong_with_a_checkpoint_is_found_before_training(
    run: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"^model\.tune: cannot tune the last 4 blocks of enc"):
        check(run.with_values(model__tune="image=last:4"))
    with pytest.raises(ConfigError, match=r"^model\.encoder-precision: bf16 is for encoders of"):
        check(run.with_values(data__tasks="tiny-move", model__encoder_precision="bf16"))
    with pytest.raises(ConfigError, match=r"^model\.encoders: .* is 'bert'; allowed here: clip"):
        check(run.with_values(model__encoders=f"image=hf:{tmp_path / 'bert'}"))
    (tmp_path / "vit" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"^model\.encoders: weights of checkpoint '.*vit'"):
        check(run)
    check(run.with_values(data__tasks="tiny-move"))  # which reads no pictures
