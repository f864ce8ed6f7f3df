"""Local training: masses, steps, the objective, and whose random streams it draws from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from clients.examples import TaskData
from clients.trainer import Trained, batches, learning_rate, train
from hffm_flower.config import RunConfig
from hffm_flower.errors import DivergedError, Interrupted
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.modules import ModularState, ModuleKey
from hffm_flower.records import to_bytes
from hffm_flower.sections import TrainConfig
from tests.support.tiny import examples, model_of

CONFIG = TrainConfig(local_epochs=1, batch_size=4, learning_rate=0.02, device="cpu")


def options(**changes: Any) -> TrainConfig:
    return CONFIG.model_copy(update=changes)


def vqa(count: int = 10, *modalities: str) -> TaskData:
    return examples("tiny-vqa", count, modalities or ("image",))


def model(tiny: RunConfig) -> MultimodalModel:
    return model_of(tiny, ["tiny-vqa", "tiny-box", "tiny-move"], ("image", "sensor", "text"))


def run(
    tiny: RunConfig, data: Sequence[TaskData], config: TrainConfig = CONFIG, **keyed: int
) -> tuple[Trained, ModularState]:
    fresh = model(tiny)
    keys = {"t": 1, "rounds": 1, "seed": 1, "device_index": 0, **keyed}
    done = train(
        fresh, data, config,
        t=keys["t"], rounds=keys["rounds"], seed=keys["seed"], device_index=keys["device_index"],
    )  # fmt: skip
    return done, fresh.state()


def change(tiny: RunConfig, state: ModularState) -> float:
    """Distance from the initial modules."""
    begun = model(tiny).state()
    return float(
        np.sqrt(sum(((a - begun[k][n]) ** 2).sum() for k, s in state.items() for n, a in s.items()))
    )


@pytest.mark.parametrize("epochs", [1, 3])
def test_mass_counts_distinct_examples_once(tiny: RunConfig, epochs: int) -> None:
    box, move = examples("tiny-box", 7, ("image",)), examples("tiny-move", 3, ("sensor",))
    parts = [vqa(10, "image", "text"), box, move]
    done, _ = run(tiny, parts, options(local_epochs=epochs))
    assert {str(k): n for k, n in done.mass.items()} == {
        "adapter/tiny.0": 10 + 7 + 3, "head/tiny-vqa": 10, "head/tiny-box": 7,
        "head/tiny-move": 3, "projector/image": 10, "projector/image-grid": 7,
        "projector/sensor": 3, "prompt/cls": 7 + 3,
    }  # fmt: skip
    assert done.examples == epochs * 20


def test_modules_without_mass_do_not_move(tiny: RunConfig) -> None:
    begun = model(tiny).state()
    done, state = run(tiny, [vqa()])
    for key in state:
        moved = any(not np.array_equal(a, begun[key][n]) for n, a in state[key].items())
        assert moved == (key in done.mass), key
    assert len(done.mass) == 4


@pytest.mark.parametrize(
    ("count", "steps", "seen", "mass"), [(10, 1, 4, 4), (10, 2, 8, 8), (5, 4, 10, 5), (3, 5, 15, 3)]
)
def test_steps_stop_training_and_count_what_was_visited(
    tiny: RunConfig, count: int, steps: int, seen: int, mass: int
) -> None:
    taken: list[None] = []
    handle = register_optimizer_step_pre_hook(lambda *_: taken.append(None))
    try:
        done, _ = run(tiny, [vqa(count)], options(local_steps=steps))
    finally:
        handle.remove()
    assert len(taken) == steps
    # 10 rows make batches of 4, 4, 2 in any order; counts hold for those that were drawn.
    if count == 10:
        assert done.examples <= seen
        assert set(done.mass.values()) == {float(done.examples)}
    else:
        assert (done.examples, set(done.mass.values())) == (seen, {float(mass)})


def test_loss_falls_and_is_a_sum_over_examples(tiny: RunConfig) -> None:
    first, _ = run(tiny, [vqa(20)], options(local_epochs=1, batch_size=20))
    whole = model(tiny)
    data = vqa(20)
    with torch.no_grad():
        expected = whole.head("tiny-vqa").loss(whole("tiny-vqa", data.inputs), data.targets) * 20
    assert first.loss == pytest.approx(float(expected), rel=1e-5)
    long, _ = run(tiny, [vqa(20)], options(local_epochs=60, batch_size=20))
    assert long.loss / long.examples < 0.6 * first.loss / first.examples


@pytest.fixture
def norms() -> Iterator[list[float]]:
    """Norm of the whole gradient at each step."""
    seen: list[float] = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        seen.append(float(torch.sqrt(sum((g.square().sum() for g in grads), torch.zeros(())))))

    handle = register_optimizer_step_pre_hook(look)
    yield seen
    handle.remove()


def test_the_gradient_is_clipped(tiny: RunConfig, norms: list[float]) -> None:
    run(tiny, [vqa()], options(clip_norm=0.0))
    free = list(norms)
    assert min(free) > 0.1
    norms.clear()
    run(tiny, [vqa()], options(clip_norm=0.01))
    assert len(norms) == len(free)
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-2)


def test_the_proximal_term_pulls_to_the_start(tiny: RunConfig) -> None:
    distances = [
        change(tiny, run(tiny, [vqa(20)], options(local_epochs=20, proximal_mu=mu))[1])
        for mu in (0.0, 1.0, 1000.0)
    ]
    assert distances[0] > distances[1] > distances[2] > 0
    # The loss reported is the task's, without the term.
    small = [run(tiny, [vqa()], options(proximal_mu=mu, batch_size=10))[0].loss for mu in (0, 1e6)]
    assert small[0] == small[1]


def test_the_rate_goes_from_the_first_to_the_last_round_in_a_line(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(learning_rate=0.5, final_learning_rate=0.2)
    rates = [learning_rate(config, t, 5) for t in range(1, 6)]
    assert rates == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])
    assert learning_rate(config, 1, 1) == 0.5
    used: list[float] = []
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"])
    )
    try:
        run(tiny, [vqa(4)], t=5, rounds=5)
    finally:
        handle.remove()
    assert used == pytest.approx([0.02 * 0.2])


def test_draws_are_keyed_by_seed_device_and_round(tiny: RunConfig) -> None:
    def bits(**keyed: int) -> bytes:
        data = [vqa(), examples("tiny-box", 6, ("image",))]
        return to_bytes(run(tiny, data, CONFIG, **keyed)[1])

    base = {"t": 1, "rounds": 1, "seed": 1, "device_index": 0}
    first = bits(**base)
    torch.manual_seed(99)
    assert bits(**base) == first  # whatever else was drawn in the process
    for name, value in (("t", 2), ("seed", 2), ("device_index", 1)):
        other = {**base, name: value}
        assert bits(**{**other, "rounds": 10**9}) != first, name


def test_batches_are_one_pass_of_single_parts() -> None:
    def draw(seed: int) -> list[tuple[int, list[int]]]:
        rng = np.random.default_rng(seed)
        return [(p, rows.tolist()) for p, rows in batches([7, 3, 4], batch_size=3, rng=rng)]

    drawn = draw(1)
    assert sorted((p, len(rows)) for p, rows in drawn) == [
        (0, 1), (0, 3), (0, 3), (1, 3), (2, 1), (2, 3),
    ]  # fmt: skip
    for part, size in enumerate((7, 3, 4)):
        assert sorted(r for p, rows in drawn if p == part for r in rows) == list(range(size))
    assert draw(1) == drawn != draw(2)
    assert [p for p, _ in drawn] != sorted(p for p, _ in drawn)


def test_stopping_is_asked_before_every_step(tiny: RunConfig) -> None:
    asked = iter([False, False, True])
    fresh = model(tiny)
    with pytest.raises(Interrupted):
        train(
            fresh, [vqa(12)], CONFIG,
            t=1, rounds=1, seed=1, device_index=0, stopped=lambda: next(asked),
        )  # fmt: skip
    assert list(asked) == []
    _, two_steps = run(tiny, [vqa(12)], options(local_steps=2))
    assert to_bytes(fresh.state()) == to_bytes(two_steps)


def test_bfloat16_is_for_the_forward_pass_only(tiny: RunConfig) -> None:
    done, state = run(tiny, [vqa()], options(precision="bf16"))
    plain, _ = run(tiny, [vqa()], options(precision="fp32"))
    assert done.loss == pytest.approx(plain.loss, rel=0.05)
    assert done.loss != plain.loss
    assert all(a.dtype == np.float32 for s in state.values() for a in s.values())
    assert ModuleKey.parse("head/tiny-vqa") in done.mass


def test_a_loss_that_is_not_finite_is_told(tiny: RunConfig) -> None:
    with pytest.raises(DivergedError, match=r"loss is (nan|inf) in edge round 1; lower train"):
        run(tiny, [vqa()], options(learning_rate=1e30, clip_norm=0.0, local_epochs=5))
