from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from hffm_flower.config import RunConfig, keys, located
from hffm_flower.errors import ConfigError, OutputError


def refused(config: object = None, **options: object) -> str:
    """The message with which options are refused, each from a flag named like its key."""
    named = {
        k.replace("__", ".").replace("_", "-"): (f"--{k.replace('_', '-')}", v)
        for k, v in options.items()
    }
    with pytest.raises(ConfigError) as caught:
        RunConfig.load(None, named)
    return str(caught.value)


def toml(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_then_base_then_file_then_options(tmp_path: Path) -> None:
    file = toml(
        tmp_path / "run.toml",
        'rounds = 5\n[tree]\nedges = 3\n[data]\ntasks = ["watch7"]\n[train]\nlocal-epochs = 7\n',
    )
    config = RunConfig.load(
        file, {"tree.edges": ("--edges", 4)}, base={"rounds": 2, "seed": 9, "tree.edges": 2}
    )
    assert (config.seed, config.rounds, config.tree.edges) == (9, 5, 4)
    assert config.data.tasks == ("watch7",)
    assert config.train.local_epochs == 7
    assert config.train.batch_size == RunConfig().train.batch_size


def test_words_are_one_string_or_a_list(tmp_path: Path) -> None:
    one = RunConfig.load(toml(tmp_path / "a", '[data]\ntasks = "watch7  easyvqa10"\n'))
    two = RunConfig.load(toml(tmp_path / "b", '[data]\ntasks = ["watch7", "easyvqa10"]\n'))
    assert one.data.tasks == two.data.tasks == ("watch7", "easyvqa10")


def test_an_error_names_the_key_the_value_and_the_file(tmp_path: Path) -> None:
    file = toml(tmp_path / "run.toml", "[tree]\ndevices = 0\n")
    with pytest.raises(ConfigError) as caught:
        RunConfig.load(file)
    said = str(caught.value)
    assert said.startswith(f"tree.devices (from {file}): 0 is not allowed")
    assert "greater than or equal to 1" in said
    assert caught.value.key == "tree.devices"


def test_an_error_names_the_option_that_it_came_from(tmp_path: Path) -> None:
    file = toml(tmp_path / "run.toml", "rounds = 3\n")
    with pytest.raises(ConfigError, match=r"^rounds \(from --rounds\): -1 is not allowed"):
        RunConfig.load(file, {"rounds": ("--rounds", -1)})
    assert refused(train__local_epochs=0).startswith("train.local-epochs (from --train--local-")
    assert refused(method="stra").startswith("method (from --method): unknown method 'stra' (did")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server.fraction", 0), ("server.fraction", 1.5), ("server.quorum", -0.1),
        ("data.alpha", 0), ("data.alpha", float("nan")), ("train.learning-rate", float("inf")),
        ("model.weights", "best"), ("train.precision", "fp64"), ("seed", -1), ("rounds", "ten"),
        ("rounds", 1.5), ("server.deadline-s", 0),
    ],
)  # fmt: skip
def test_values_that_are_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.load(None, {key: ("--flag", value)})
    assert str(caught.value).startswith(f"{key} (from --flag): {value!r} is not allowed: ")
    assert caught.value.key == key


def test_a_misspelt_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    file = toml(tmp_path / "run.toml", "[train]\nlocal-epoch = 1\n")
    with pytest.raises(ConfigError) as caught:
        RunConfig.load(file)
    assert str(caught.value).startswith(
        f"train.local-epoch (from {file}): unknown setting; did you mean 'train.local-epochs'?; "
        "allowed here: train.local-epochs, train.local-steps, "
    )
    assert "tree.edges" not in str(caught.value)


@pytest.mark.parametrize("key", ["zzz", "train.local_epochs", "tree", "zzz.qqq", "tree.edges.x"])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting") as caught:
        RunConfig.from_flwr({key: 1})
    assert str(caught.value).startswith(f"{key} (from Flower's run config)")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        RunConfig.load(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        RunConfig.load(toml(tmp_path / "x.toml", "rounds = \n"))
    binary = tmp_path / "b.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"b\.toml"):
        RunConfig.load(binary)


def test_more_edges_than_devices_is_refused_unless_the_method_has_none() -> None:
    assert refused(tree__devices=3, tree__edges=4) == (
        "tree.edges (from --tree--edges): 4 edges are more than the 3 devices; "
        "every edge needs at least one device"
    )
    flat = {"tree.devices": 3, "tree.edges": 4, "method": "star"}
    assert RunConfig.from_flwr(flat).tree.edges == 4
    assert RunConfig.from_flwr({"tree.devices": 4, "tree.edges": 4}).tree.edges == 4


def test_tasks_and_encoders_are_checked() -> None:
    assert "no task is named" in refused(data__tasks="")
    assert "'watch7 watch7' repeats a task" in refused(data__tasks="watch7 watch7")
    assert "4 is above data.max-tasks = 3" in refused(data__min_tasks=4)
    for wrong in ("image", "=lite0", "image=", "image=a image=b"):
        assert "not of the form modality=encoder" in refused(model__encoders=wrong)
    assert RunConfig().encoder_names() == {
        "image": "lite0", "text": "minilm", "sensor": "patches", "audio": "speech"
    }  # fmt: skip


def test_the_flat_form_is_scalar_complete_and_reversible() -> None:
    config = RunConfig().with_values(
        method="star", rounds=3, data__tasks="watch7 easyvqa10", server__modules="head/*=edge",
        data__alpha=0.1, train__learning_rate=1e-5,
    )  # fmt: skip
    flat = config.to_flwr()
    assert tuple(flat) == keys()
    assert all(isinstance(v, str | int | float | bool) for v in flat.values())
    assert flat["data.tasks"] == "watch7 easyvqa10"
    again = RunConfig.from_flwr(flat)
    assert again.model_dump() == config.model_dump()
    assert again.to_flwr() == flat


def test_with_values_changes_only_what_is_named() -> None:
    config = RunConfig()
    changed = config.with_values(tree__period=5, train__local_epochs=4)
    assert {k for k, v in changed.to_flwr().items() if v != config.to_flwr()[k]} == {
        "tree.period", "train.local-epochs"
    }  # fmt: skip
    assert config.tree.period == RunConfig().tree.period
    with pytest.raises(ConfigError, match=r"did you mean 'tree\.period'"):
        config.with_values(tree__periods=5)


def test_a_config_is_frozen() -> None:
    config = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.rounds = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.tree.edges = 3  # type: ignore[misc]


def test_settings_are_shared_but_for_places_and_hardware() -> None:
    config = RunConfig()
    shared = config.shared()
    own = config.with_values(
        paths__out="/a", paths__cache="/b", paths__state="/c", simulation__actors=3,
        simulation__gpus_per_actor=0.5, train__device="cpu",
    )  # fmt: skip
    assert own.shared() == shared == RunConfig.from_flwr(config.to_flwr()).shared()
    changes: list[dict[str, object]] = [
        {"seed": 2}, {"rounds": 13}, {"method": "star"}, {"tree__edges": 2},
        {"data__alpha": 0.6}, {"model__adapter_rank": 8}, {"train__precision": "fp32"},
        {"server__modules": "head/*=edge"}, {"data__tasks": "watch7"},
    ]  # fmt: skip
    for change in changes:
        other = config.with_values(**change).shared()
        assert len(other.items() - shared.items()) == 1


def test_the_cache_is_the_named_folder_else_the_environments_else_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HFFM_CACHE", str(tmp_path / "env"))
    assert RunConfig().with_values(paths__cache="x/y").cache_dir() == Path("x/y")
    assert RunConfig().cache_dir() == tmp_path / "env"
    monkeypatch.delenv("HFFM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunConfig().cache_dir() == tmp_path / ".cache" / "hffm-flower"


def test_a_later_error_is_located_once_and_keeps_its_kind() -> None:
    config = RunConfig.load(None, {"paths.out": ("--out", "x")})
    error = config.locate(OutputError("'x' is full", key="paths.out"))
    assert isinstance(error, OutputError)
    assert str(error) == "paths.out (from --out): 'x' is full"
    assert config.locate(error) is error
    plain = ConfigError("something")
    assert located(plain, {}) is plain
