"""The configurations in deploy/runs work, and are what they say."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from flwr.common.config import flatten_dict
from torch import nn

from clients.spec import model_spec
from hffm_flower.cli.options import PRESETS
from hffm_flower.config import RunConfig, keys
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.models.parts import ModelSpec, module_keys
from hffm_flower.modules import ModuleKey, ModuleKind
from hffm_flower.schedule import Placement, Schedule, Scope
from hffm_flower.session.variants import read_variants, variant_entries
from strategies.planting import schedule_of
from strategies.server_optimizers import OptimizerPolicy

RUNS = Path(__file__).parents[2] / "deploy" / "runs"
COMPARED = ("missing-modality.toml", "module-kinds.toml", "trained-encoder.toml")
"""Variants, not one run."""
ELSEWHERE = ("case-study.toml",)
"""Needs data and weights that do not come with pip; see tests/integration/test_case_study.py."""
FILES = sorted(p.name for p in RUNS.glob("*.toml") if p.name not in COMPARED + ELSEWHERE)


def load(name: str) -> RunConfig:
    return RunConfig.load(RUNS / name)


def schedule(config: RunConfig) -> Schedule:
    """Schedule of a run in which some device holds each module that its tasks can have."""
    tasks, spec = config.data.tasks, model_spec(config)
    every = set(module_keys(tasks, tuple(config.encoder_names()), spec))
    without_text = set(module_keys(tasks, ("image", "sensor"), spec))
    return schedule_of(config, every | without_text)


def test_the_folder_holds_the_known_runs() -> None:
    assert FILES == [
        "asymmetric.toml", "default.toml", "fedrep.toml", "fedsa-lora.toml",
        "personal-heads.toml", "smoke.toml",
    ]  # fmt: skip
    assert all((RUNS / name).exists() for name in COMPARED + ELSEWHERE)


@pytest.mark.parametrize("name", FILES)
def test_run_is_valid_and_places_every_module(name: str) -> None:
    config = load(name)
    assert schedule(config).placements
    OptimizerPolicy(config.server.optimizer)
    assert RunConfig.from_flwr(config.to_flwr()).to_flwr() == config.to_flwr()


def test_default_shows_every_setting_at_its_default() -> None:
    table = tomllib.loads((RUNS / "default.toml").read_text(encoding="utf-8"))
    for at in table.values():
        if isinstance(at, dict):
            at |= {k: " ".join(map(str, v)) for k, v in at.items() if isinstance(v, list)}
    words = flatten_dict(table)
    assert words == RunConfig().to_flwr()
    assert tuple(words) == keys()
    assert load("default.toml").to_flwr() == RunConfig().to_flwr()


def test_smoke_is_the_preset_of_the_command_line() -> None:
    table = tomllib.loads((RUNS / "smoke.toml").read_text(encoding="utf-8"))
    assert flatten_dict(table) == dict(PRESETS["smoke"])
    assert load("smoke.toml").to_flwr() == RunConfig.load(base=PRESETS["smoke"]).to_flwr()


def test_asymmetric_sends_small_modules_often_and_adapters_seldom() -> None:
    periods = {
        kind: {p.period for k, p in schedule(load("asymmetric.toml")).placements.items()
               if k.kind is kind and p.scope is Scope.CLOUD}
        for kind in (ModuleKind.PROMPT, ModuleKind.HEAD, ModuleKind.PROJECTOR, ModuleKind.ADAPTER)
    }  # fmt: skip
    assert periods == {
        ModuleKind.PROMPT: {1}, ModuleKind.HEAD: {1},
        ModuleKind.PROJECTOR: {2}, ModuleKind.ADAPTER: {4},
    }  # fmt: skip


def test_asymmetric_adapters_are_the_large_part() -> None:
    config = load("asymmetric.toml")
    spec = ModelSpec(config.model.backbone, config.encoder_names(), "random", 256, seed=0)
    assert config.model.adapter_rank == spec.adapter_rank
    model = MultimodalModel(spec, config.data.tasks, tuple(spec.encoders), nn.Module())
    size = {key: sum(p.numel() for p in model.part(key).parameters()) for key in model.keys}
    adapters = sum(n for key, n in size.items() if key.kind is ModuleKind.ADAPTER)
    assert round(adapters / 1e6, 2) == 0.79
    assert adapters > max(n for key, n in size.items() if key.kind is ModuleKind.HEAD)
    assert round(size[ModuleKey(ModuleKind.HEAD, "easyvqa10")] / 1e6, 2) == 0.15


def test_fedsa_lora_shares_a_and_keeps_b() -> None:
    placements = schedule(load("fedsa-lora.toml")).placements
    own = {str(k) for k, p in placements.items() if p.scope is Scope.DEVICE}
    assert own == {"adapter/fusion.4.B", "adapter/fusion.5.B"}
    assert {"adapter/fusion.4.A", "adapter/fusion.5.A"} <= {str(k) for k in placements}


@pytest.mark.parametrize("name", ["personal-heads.toml", "fedrep.toml"])
def test_personal_heads_stay_and_all_else_is_shared(name: str) -> None:
    config = load(name)
    assert bool(config.train.head_epochs) == (name == "fedrep.toml")
    placements = schedule(config).placements
    heads = tuple(sorted(ModuleKey(ModuleKind.HEAD, task) for task in config.data.tasks))
    assert tuple(k for k, p in placements.items() if p == Placement(Scope.DEVICE)) == heads
    shared = {p for k, p in placements.items() if k not in heads}
    assert shared == {Placement(Scope.CLOUD, config.tree.period)}


@pytest.mark.parametrize("name", COMPARED)
def test_every_variant_is_a_valid_run(name: str) -> None:
    file = read_variants(RUNS / name)
    for entry in variant_entries(RunConfig.load(base=file.common), file.variants, [1]):
        assert schedule(entry.config).placements


def test_module_kinds_are_seven_variants_of_one_federation() -> None:
    file = read_variants(RUNS / "module-kinds.toml")
    made = variant_entries(RunConfig.load(base=file.common), file.variants, [1])
    assert [entry.name for entry in made] == [
        "bottleneck", "lora-exact", "lora-naive", "lora-ffa", "lora-alternate", "prompts",
        "experts",
    ]  # fmt: skip
    for entry in made:
        config = entry.config
        assert (config.tree.devices, config.tree.edges, config.tree.period) == (20, 5, 2)
        assert (config.rounds, config.data.test_per_answer) == (6, 50)
        assert schedule(config).placements
        if entry.name.startswith("lora"):
            mixed = entry.name in ("lora-exact", "lora-naive")
            assert config.model.lora_ranks == ((4, 8, 16) if mixed else (4,))
            assert config.server.lora_rule == entry.name
