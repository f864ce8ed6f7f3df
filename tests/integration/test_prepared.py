"""A federation over tasks that were prepared from folders of the official formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

import hffm_flower
from clients.shares import drawn_partition, partition_file
from hffm_flower.config import RunConfig
from hffm_flower.data.prepare import Wanted, prepare
from hffm_flower.errors import ConfigError, OutputError
from hffm_flower.models.encoders import ENCODERS
from hffm_flower.session.preflight import check
from hffm_flower.tasks import TASKS, definitions, difference
from tests.support.fake_grid import FIRST_NODE, FakeGrid
from tests.support.folders import TinyPixels, picture, write_csv, write_device
from tests.support.official_data import TEN, make_gqa, make_series_csv, make_vizwiz
from tests.support.played import play
from tests.support.tiny import forget

WANTED = Wanted(10, {"train": 4, "test": 3})
OWN = 1


@pytest.fixture
def config(tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run over gqa10, vizwiz10 and recordings."""
    monkeypatch.setenv("HFFM_DATA", str(tmp_path / "tasks"))
    monkeypatch.setitem(cast("dict[str, object]", ENCODERS), "tiny-image", TinyPixels)
    prepare("gqa", make_gqa(tmp_path / "gqa"), wanted=WANTED)
    prepare("vizwiz", make_vizwiz(tmp_path / "vizwiz"), wanted=WANTED)
    prepare(
        "series-csv", make_series_csv(tmp_path / "shake", recordings=16), settings={"window": 5},
        wanted=Wanted(2, {"train": 16, "test": 4}), name="shake2",
    )  # fmt: skip
    return tiny.with_values(
        data__tasks="gqa10 vizwiz10 shake2", data__train_per_answer=4, data__test_per_answer=3,
        data__alpha=100.0, data__full_modality_share=1.0, tree__devices=4, rounds=3, seed=1,
    )  # fmt: skip


def own_folder(folder: Path) -> Path:
    """A device with pictures of its own for gqa10, one with an answer that the task lacks."""
    rows = [
        (picture(folder / "shots" / f"{i}.png", i % 10), "what?", f"The {TEN[i % 10]}!")
        for i in range(20)
    ]
    rows.append((rows[0][0], "what?", "unicorn"))
    write_csv(folder / "shots" / "examples.csv", ("image", "text", "answer"), rows)
    return write_device(folder / "d.toml", {"gqa10": {"kind": "image-csv", "path": "shots"}})


def test_a_federation_trains_on_prepared_tasks(config: RunConfig, tmp_path: Path) -> None:
    assert check(config).idle == ()
    file = own_folder(tmp_path / "own")

    class OwnGrid(FakeGrid):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.contexts[FIRST_NODE + OWN].node_config["own-data"] = str(file)

    played = play(config, tmp_path / "out", grid=OwnGrid)
    assert played.error is None
    assert played.result["status"] == "finished"
    assert all(not report.dropped for report in played.rounds)
    losses = [report.loss_sum / report.trained for report in played.rounds]
    assert losses[-1] < losses[0]
    (told,) = (
        json.loads(str(c.reply.content.config_records["profile"]["json"]))
        for c in played.app.of("query.profile") if c.index == OWN
    )  # fmt: skip
    assert told["skipped"] == {"gqa10": {"unknown answer": 1}}
    assert (told["tasks"], told["tests"]) == ({"gqa10": 16}, {"gqa10": 4})
    assert played.result["tasks"] == definitions(config.data.tasks)
    model = hffm_flower.load(tmp_path / "out")
    assert model.predict("gqa10", image=Image.new("RGB", (6, 4)), text="what?") in TEN


def test_what_is_prepared_anew_is_another_task(config: RunConfig, tmp_path: Path) -> None:
    before = definitions(config.data.tasks)
    path = partition_file(config)
    assert play(config.with_values(rounds=1), tmp_path / "out").error is None
    hffm_flower.load(tmp_path / "out")
    again = Wanted(10, WANTED.per_answer, seed=2)
    prepare("gqa", tmp_path / "gqa", wanted=again, replace=True)
    odd = difference(before)
    assert odd.startswith("its examples of task 'gqa10': 'digest ")
    assert partition_file(config) != path
    with pytest.raises(OutputError, match="had other tasks: its examples of task 'gqa10'"):
        hffm_flower.load(tmp_path / "out")


def test_what_is_wrong_is_found_before_a_run(config: RunConfig, tmp_path: Path) -> None:
    assert drawn_partition(partition_file(config), config)
    with pytest.raises(ConfigError, match=r"unknown task 'gqa1' \(did you mean 'gqa10'\?\)") as no:
        check(config.with_values(data__tasks="gqa1"))
    assert "'hffm data prepare' adds tasks below" in str(no.value)
    with pytest.raises(ConfigError, match="5 train examples asked of task 'gqa10', but it has 4"):
        check(config.with_values(data__train_per_answer=5))
    prepare(
        "series-csv", tmp_path / "shake", settings={"window": 4}, name="shake2", replace=True,
        wanted=Wanted(2, {"train": 4, "test": 3}),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"task 'shake2': windows \[4, 3\] \(samples, channels\)"):
        check(config)
    (tmp_path / "vizwiz" / "train").rename(tmp_path / "elsewhere")
    forget()  # as in another process; the partition is in the cache
    with pytest.raises(ConfigError, match=r"task 'vizwiz10': of its 70 files .* 40 missing"):
        check(config.with_values(data__tasks="gqa10 vizwiz10"))
    assert "vizwiz10" in TASKS
