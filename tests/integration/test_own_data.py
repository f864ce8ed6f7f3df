"""A federation in which two devices bring their own folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from clients.resident import all_profiles
from hffm_flower.config import RunConfig
from hffm_flower.models.encoders import ENCODERS
from hffm_flower.models.parts import module_keys
from hffm_flower.modules import ModuleKey
from hffm_flower.records import to_bytes, update_of
from tests.support.fake_grid import FIRST_NODE, FakeGrid
from tests.support.folders import TinyPixels, camera_folder, sensor_folder, write_device
from tests.support.played import Played, RecordingApp, play
from tests.support.tiny import forget, spec_of

CAMERA, SENSOR = 0, 4
"""Device 0 would be idle, without a file of its own."""


@pytest.fixture
def files(tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, Path]:
    """Device -> the file that names its data."""
    monkeypatch.setitem(cast("dict[str, object]", ENCODERS), "tiny-image", TinyPixels)
    camera_folder(tmp_path / "camera" / "shots", count=40)
    sensor_folder(tmp_path / "sensor" / "watch", recordings=12)
    return {
        CAMERA: write_device(
            tmp_path / "camera" / "device.toml",
            {"tiny-vqa": {"kind": "image-csv", "path": "shots"}},
        ),
        SENSOR: write_device(
            tmp_path / "sensor" / "device.toml",
            {"tiny-move": {"kind": "series-csv", "path": "watch", "window": 5}},
        ),
    }


def run(
    config: RunConfig, files: dict[int, Path], out: Path, app: RecordingApp | None = None
) -> Played:
    class OwnGrid(FakeGrid):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            for index, file in files.items():
                self.contexts[FIRST_NODE + index].node_config["own-data"] = str(file)

    return play(config, out, app=app, grid=OwnGrid)


def profile_of(played: Played, index: int) -> dict[str, Any]:
    (reply,) = (c.reply for c in played.app.of("query.profile") if c.index == index)
    told: dict[str, Any] = json.loads(str(reply.content.config_records["profile"]["json"]))
    return told


def test_own_folders_take_part_in_a_run(
    tiny: RunConfig, tmp_path: Path, files: dict[int, Path], caplog: pytest.LogCaptureFixture
) -> None:
    played = run(tiny.with_values(rounds=4), files, tmp_path / "out")
    assert played.error is None
    assert played.result["status"] == "finished"
    assert played.result["idle_devices"] == []
    assert played.result["refused_nodes"] == {}
    assert all(r.devices == [0, 1, 2, 3, 4, 5] and not r.dropped for r in played.rounds)
    camera, sensor = profile_of(played, CAMERA), profile_of(played, SENSOR)
    assert (camera["modalities"], camera["tasks"]) == (["image", "text"], {"tiny-vqa": 32})
    assert (sensor["modalities"], sensor["tasks"]) == (["sensor"], {"tiny-move": 18})
    # What was left out is counted in the profile and shown by who registers the device.
    skipped = {"missing file": 1, "unknown answer": 2, "unreadable file": 1}
    assert camera["skipped"] == {"tiny-vqa": skipped}
    assert sensor["skipped"] == {"tiny-move": {"unknown answer": 2}}
    assert f"device 0 does not use of its own data: {{'tiny-vqa': {skipped}}}" in caplog.text
    assert "device 4 does not use of its own data: {'tiny-move': {'unknown" in caplog.text
    # They train what their profile names, with the mass of their own examples.
    for index, told in ((CAMERA, camera), (SENSOR, sensor)):
        (task,) = told["tasks"]
        for call in (c for c in played.app.of("train") if c.index == index):
            mass = update_of(call.reply.content).mass
            assert set(mass) == set(module_keys([task], told["modalities"], spec_of(played.config)))
            assert set(mass.values()) == {told["tasks"][task]}
    # Their test examples are their shard of both splits.
    held = {p.index: dict(p.tests) for p in all_profiles(tiny)}
    held |= {CAMERA: camera["tests"], SENSOR: sensor["tests"]}
    assert held[CAMERA] == {"tiny-vqa": 8}
    totals = {t: sum(tests.get(t, 0) for tests in held.values()) for t in played.config.data.tasks}
    scores = played.rounds[-1].scores["cloud"]
    assert {t: s.total for t, s in scores["iid"].items()} == totals
    for call in (c for c in played.app.of("evaluate") if c.index == CAMERA):
        told = dict(call.reply.content.metric_records["scores"])
        assert told["iid/tiny-vqa"] == told["skewed/tiny-vqa"]
    assert played.rounds[-1].loss_sum < played.rounds[0].loss_sum


def test_the_same_folders_give_the_same_bits(
    tiny: RunConfig, tmp_path: Path, files: dict[int, Path]
) -> None:
    one = run(tiny, files, tmp_path / "one")
    forget()
    other = run(tiny, files, tmp_path / "other")
    assert one.error is other.error is None
    assert to_bytes(one.files.cloud()) == to_bytes(other.files.cloud())
    plain = play(tiny, tmp_path / "plain")
    assert to_bytes(plain.files.cloud()) != to_bytes(one.files.cloud())


def test_a_wrong_file_is_refused_before_any_training(
    tiny: RunConfig, tmp_path: Path, files: dict[int, Path]
) -> None:
    files[CAMERA].write_text(files[CAMERA].read_text().replace("shots", "shoots"))
    played = run(tiny, files, tmp_path / "out")
    assert played.error is None
    (why,) = played.result["refused_nodes"].values()
    assert "data.tiny-vqa.path (from " in why
    assert "'shoots' does not exist" in why
    assert {c.index for c in played.app.of("train")} == {1, 2, 3, 4, 5}


class OtherVocabulary(RecordingApp):
    """The sensor device's installation has the answers in another order."""

    def answer(self, message: Message, context: Any, **call: Any) -> Message:
        reply = super().answer(message, context, **call)
        if call["kind"] != "query.profile" or call["index"] != SENSOR:
            return reply
        told = json.loads(str(reply.content.config_records["profile"]["json"]))
        told["definitions"]["tiny-move"]["answers"] = "3 (digest 0123456789abcdef)"
        record = ConfigRecord({"json": json.dumps(told)})
        return Message(RecordDict({"profile": record}), reply_to=message)


def test_a_device_with_another_vocabulary_is_refused_with_the_difference(
    tiny: RunConfig, tmp_path: Path, files: dict[int, Path]
) -> None:
    played = run(tiny, files, tmp_path / "out", OtherVocabulary())
    (why,) = played.result["refused_nodes"].values()
    assert "device 4: its answers of task 'tiny-move': '3 (digest 0123456789abcdef)'" in why
    assert ", here '2 (digest " in why
    assert SENSOR not in {c.index for c in played.app.of("train")}
    assert ModuleKey.parse("head/tiny-move") in played.files.cloud()
