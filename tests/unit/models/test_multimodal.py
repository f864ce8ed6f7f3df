"""The model is assembled from a profile: what is needed, nothing else, the same bits anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import numpy as np
import pytest
import torch

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError, ModuleError
from hffm_flower.models.backbones import BACKBONES
from hffm_flower.models.encoders import ENCODERS
from hffm_flower.models.encoders.encoder import Tokens
from hffm_flower.models.multimodal import MultimodalModel
from hffm_flower.models.parts import ModelSpec, module_keys, task_modules
from hffm_flower.modules import ModularState, ModuleKey, digest
from hffm_flower.tasks import TASKS
from tests.support.tiny import examples, model_of, spec_of

REAL = {"image": "lite0", "text": "minilm", "sensor": "patches", "audio": "speech"}


def subsets(task: str) -> list[tuple[str, ...]]:
    """Modalities of devices that can run ``task``, with and without the optional ones."""
    spec = TASKS[task]
    return [
        (*spec.required, *some)
        for n in range(len(spec.optional) + 1)
        for some in itertools.combinations(spec.optional, n)
    ]


CASES = [
    pytest.param(b, t, m, id=f"{b}-{t}-{'+'.join(m)}")
    for b in BACKBONES for t in TASKS for m in subsets(t)
]  # fmt: skip


TARGETS = {
    "box": torch.full((3, 4), 0.5),
    "retrieval": torch.arange(3 * 384.0).sin().view(3, 1, 384),
    "caption": torch.tensor([[1, 2, 0, 0, 0, 0, 0, 0]] * 3),
    "regression": torch.ones(3, 1),
    "forecast": torch.arange(3 * 18 * 6.0).cos().view(3, 18, 6),
}
"""Of a batch of three, by head; others have classes."""


def build(
    backbone: str, tasks: Sequence[str], modalities: Collection[str], *, seed: int = 1
) -> MultimodalModel:
    spec = ModelSpec(backbone, REAL, "random", 4, seed)
    return MultimodalModel(spec, tasks, modalities, BACKBONES[backbone].load_frozen("random", seed))


def inputs(task: str, modalities: Collection[str], batch: int = 3) -> dict[str, Tokens]:
    torch.manual_seed(2)
    made = {}
    for modality, stream in TASKS[task].fused.items():
        if modality in modalities:
            shape = ENCODERS[REAL[modality]].streams[stream]
            mask = torch.ones(batch, shape.tokens, dtype=torch.bool)
            made[stream] = Tokens(torch.randn(batch, shape.tokens, shape.width), mask)
    return made


def digests(state: ModularState) -> dict[ModuleKey, str]:
    return {k: digest(s) for k, s in state.items()}


@pytest.mark.parametrize(("backbone", "task", "modalities"), CASES)
def test_a_device_holds_exactly_what_its_task_needs(
    backbone: str, task: str, modalities: tuple[str, ...]
) -> None:
    model = build(backbone, [task], modalities)
    family = BACKBONES[backbone]
    expected = {f"head/{task}", *map(str, family.blocks())}
    expected |= {f"adapter/{layer}" for layer in family.layers}
    for modality, stream in TASKS[task].inputs.items():
        if modality == TASKS[task].target:
            continue
        if modality in modalities and stream not in family.native_streams:
            expected.add(f"projector/{stream}")
    if "text" not in modalities or TASKS[task].target == "text":
        expected.add("prompt/cls")
    assert {str(k) for k in model.keys} == expected
    assert model.keys == module_keys([task], modalities, model.spec)
    assert model.keys == task_modules(task, modalities, model.spec)
    assert list(model.state()) == sorted(model.keys)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert parameters == sum(a.size for s in model.state().values() for a in s.values())
    # Every module it holds, and no other parameter, gets a gradient from its task.
    data = inputs(task, modalities)
    output = model(task, data)
    target = TARGETS.get(TASKS[task].head, torch.arange(3))
    torch.autograd.backward(model.head(task).loss(output, target))
    for key in model.keys:
        grads = [p.grad for p in model.part(key).parameters()]
        assert any(g is not None and g.abs().max() > 0 for g in grads), key
    assert all(p.grad is None for p in model.frozen.parameters())


def test_a_device_of_several_tasks_holds_the_union(tiny: RunConfig) -> None:
    tasks, has = ["tiny-vqa", "tiny-box", "tiny-move"], ("image", "sensor", "text")
    model = model_of(tiny, tasks, has)
    assert [str(k) for k in model.keys] == [
        "adapter/tiny.0", "head/tiny-box", "head/tiny-move", "head/tiny-vqa",
        "projector/image", "projector/image-grid", "projector/sensor", "prompt/cls",
    ]  # fmt: skip
    assert set(model.keys) == {k for t in tasks for k in task_modules(t, has, model.spec)}
    # A modality that no task of it reads brings nothing.
    assert model_of(tiny, ["tiny-move"], has).keys == model_of(tiny, ["tiny-move"], ["sensor"]).keys


def test_masked_padding_changes_nothing(tiny: RunConfig) -> None:
    model = model_of(tiny, ["tiny-vqa"], ("image", "text"))
    data = examples("tiny-vqa", 8, ("image", "text"))
    text = data.inputs["text"]
    assert not text.mask.all()
    values = text.values.clone()
    values[~text.mask] = 1000.0
    padded = {**data.inputs, "text": Tokens(values, text.mask)}
    plain = model("tiny-vqa", data.inputs)
    assert torch.equal(model("tiny-vqa", padded), plain)
    # A real token counts.
    words = text.values.clone()
    words[:, 0] += 1.0
    other = {**data.inputs, "text": Tokens(words, text.mask)}
    assert not torch.allclose(model("tiny-vqa", other), plain, atol=1e-4)


def test_a_missing_modality_is_absent_not_zero(tiny: RunConfig) -> None:
    with_text = model_of(tiny, ["tiny-vqa"], ("image", "text"))
    without = model_of(tiny, ["tiny-vqa"], ("image",))
    both, image = (examples("tiny-vqa", 8, m) for m in (("image", "text"), ("image",)))
    zeros = Tokens(torch.zeros(8, 3, 8), both.inputs["text"].mask)
    zero_filled = with_text("tiny-vqa", {**both.inputs, "text": zeros})
    assert not torch.allclose(zero_filled, without("tiny-vqa", image.inputs), atol=1e-4)
    # What the device has not is not read, even where the example has it.
    assert torch.equal(without("tiny-vqa", both.inputs), without("tiny-vqa", image.inputs))


def test_the_pooling_prompt_learns_without_text_only(tiny: RunConfig) -> None:
    cls = ModuleKey.parse("prompt/cls")
    image = examples("tiny-vqa", 8, ("image",))
    without = model_of(tiny, ["tiny-vqa"], ("image",))
    torch.autograd.backward(
        without.head("tiny-vqa").loss(without("tiny-vqa", image.inputs), image.targets)
    )
    (token,) = without.part(cls).parameters()
    assert token.grad is not None
    assert token.grad.abs().max() > 0
    both = examples("tiny-vqa", 8, ("image", "text"))
    assert cls not in model_of(tiny, ["tiny-vqa"], ("image", "text")).keys
    # With another task that needs it, it is there but text examples do not touch it.
    model = model_of(tiny, ["tiny-vqa", "tiny-box"], ("image", "text"))
    torch.autograd.backward(
        model.head("tiny-vqa").loss(model("tiny-vqa", both.inputs), both.targets)
    )
    assert [p.grad for p in model.part(cls).parameters()] == [None]


def test_a_device_with_text_pools_an_example_without_it(tiny: RunConfig) -> None:
    """Pooled data mix devices: the model has the prompt and text, some examples have none."""
    model = model_of(tiny, ["tiny-vqa", "tiny-box"], ("image", "text"))
    narrow = model_of(tiny, ["tiny-vqa"], ("image",))
    image = examples("tiny-vqa", 8, ("image",))
    assert torch.equal(model("tiny-vqa", image.inputs), narrow("tiny-vqa", image.inputs))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_same_module_has_the_same_bits_on_every_device(backbone: str) -> None:
    torch.manual_seed(11)
    small = build(backbone, ["easyvqa10"], ("image",))
    torch.manual_seed(12)
    large = build(backbone, ["watch7", "easyvqa-box", "easyvqa10"], ("text", "image", "sensor"))
    mine, theirs = digests(small.state()), digests(large.state())
    shared = mine.keys() & theirs.keys()
    assert len(shared) >= 4
    assert all(mine[k] == theirs[k] for k in shared)
    other = digests(build(backbone, ["easyvqa10"], ("image",), seed=2).state())
    assert all(mine[k] != other[k] for k in mine)
    # Modules of one shape are not copies of each other.
    assert len(set(theirs.values())) == len(theirs)


def test_making_a_model_leaves_the_random_stream_alone(tiny: RunConfig) -> None:
    frozen = model_of(tiny, ["tiny-vqa"], ("image",)).frozen
    torch.manual_seed(12)
    before = torch.random.get_rng_state()
    MultimodalModel(spec_of(tiny), ["tiny-vqa", "tiny-box"], ("image",), frozen)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_state_goes_round(tiny: RunConfig) -> None:
    model = model_of(tiny, ["tiny-vqa", "tiny-move"], ("image", "sensor"))
    state = model.state()
    assert all(a.dtype == np.float32 for s in state.values() for a in s.values())
    moved = {k: {n: a + 1 for n, a in s.items()} for k, s in state.items()}
    model.load(moved)
    assert digests(model.state()) == digests(moved)
    assert digests(model.state()) != digests(state)
    # A state is a copy: neither side writes through.
    taken = model.state()
    for tensors in taken.values():
        for array in tensors.values():
            array += 1
    for tensors in moved.values():
        for array in tensors.values():
            array += 5
    assert digests(model.state()) == {
        k: digest({n: a + 1 for n, a in s.items()}) for k, s in state.items()
    }


def test_some_modules_can_be_taken_and_loaded(tiny: RunConfig) -> None:
    model = model_of(tiny, ["tiny-vqa"], ("image",))
    head, rest = model.keys[1], [k for k in model.keys if k != model.keys[1]]
    before = digests(model.state(rest))
    assert list(model.state([head])) == [head]
    model.load({head: {n: a * 0 for n, a in model.state()[head].items()}})
    assert not any(a.any() for a in model.state([head])[head].values())
    assert digests(model.state(rest)) == before


def test_states_that_do_not_fit_are_refused_whole(tiny: RunConfig) -> None:
    model = model_of(tiny, ["tiny-vqa"], ("image",))
    good = model.state()
    head, adapter = ModuleKey.parse("head/tiny-vqa"), ModuleKey.parse("adapter/tiny.0")
    moved = {n: a + 1 for n, a in good[adapter].items()}
    first = next(iter(good[head]))
    bad: dict[str, ModularState] = {
        "has no head/tiny-move;": {ModuleKey.parse("head/tiny-move"): good[head]},
        "tensors of head/tiny-vqa do not fit": {head: {}},
        "head/tiny-vqa do not fit": {head: {**good[head], "more": np.zeros(1, np.float32)}},
        "tiny-vqa do not fit this": {head: {**good[head], first: np.zeros((1, 1), np.float32)}},
    }
    for message, state in bad.items():
        with pytest.raises(ModuleError, match=message):
            model.load({adapter: moved, **state})
        assert digests(model.state()) == digests(good), message


@pytest.mark.parametrize(
    ("backbone", "encoders", "message"),
    [
        ("smal", REAL, "unknown backbone 'smal' .did you mean 'small'"),
        ("small", {"image": "lite1"}, "unknown encoder 'lite1'"),
        ("small", {"text": "lite0"}, "encoder 'lite0' reads image, not text"),
    ],
)
def test_unknown_parts_are_told(backbone: str, encoders: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelSpec(backbone, encoders, "random", 4, 1).check()
    ModelSpec("small", REAL, "random", 4, 1).check()


def test_a_stream_that_the_encoder_lacks_is_told() -> None:
    spec = ModelSpec("small", {"image": "lite0"}, "random", 4, 1)
    with pytest.raises(ConfigError, match="unknown stream of encoder 'lite0' 'pixels'"):
        spec.stream("image", "pixels")
