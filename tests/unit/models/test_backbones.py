"""Backbones: frozen where they say, equal to the published model at step 0."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hffm_flower.assets import asset_root
from hffm_flower.models.adapters import LayerAdapters
from hffm_flower.models.backbones import (
    BACKBONES,
    FrozenLayer,
    MiniLMFusion,
    Weights,
    attend,
)
from hffm_flower.models.small_fusion import PreNormBlock

RANK = 4


def trained(name: str, *, moved: bool = False) -> list[nn.Module]:
    torch.manual_seed(5)
    family = BACKBONES[name]
    modules: list[nn.Module] = [make() for make in family.blocks().values()]
    modules += [LayerAdapters(family.width, RANK) for _ in family.layers]
    if moved:
        for module in modules:
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.1)
    return modules


def tokens(width: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(6)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, 5:] = False
    mask[2, 1:] = False
    return torch.randn(3, 7, width), mask


def state_of(module: nn.Module) -> Mapping[str, Tensor]:
    return module.state_dict()


@pytest.fixture(scope="module")
def pretrained() -> nn.Module:
    return MiniLMFusion.load_frozen("pretrained", 0)


def test_step_0_is_the_published_model(pretrained: nn.Module) -> None:
    """Layers 4 and 5 of transformers' BertModel on the same hidden states, padding included."""
    import transformers

    folder = asset_root("minilm") / "model"
    config = transformers.BertConfig.from_json_file(folder / "config.json")
    config._attn_implementation = "eager"
    whole = transformers.BertModel(config, add_pooling_layer=False)
    weights = load_file(folder / "model.safetensors")
    missing = whole.load_state_dict(weights, strict=False).missing_keys
    assert missing == []
    whole.train(False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    words = tokenizer(
        ["what is drawn here?", "no", "is there a small green triangle in the image?"],
        return_tensors="pt", padding=True,
    )  # fmt: skip
    mask = words["attention_mask"].bool()
    assert not mask.all()
    with torch.inference_mode():
        hidden = whole(**words, output_hidden_states=True).hidden_states
        assert len(hidden) == 7
        pooled, fused = MiniLMFusion.fuse(pretrained, trained("minilm-fusion"), hidden[4], mask)
    assert torch.allclose(fused[mask], hidden[5][mask], atol=1e-5)
    assert torch.allclose(pooled, hidden[6][:, 0], atol=1e-5)


def test_only_token_0_is_computed_and_is_what_all_would_be(pretrained: nn.Module) -> None:
    x, mask = tokens(MiniLMFusion.width)
    layers = trained("minilm-fusion", moved=True)
    assert isinstance(pretrained, nn.ModuleList)
    for layer, adapters in zip(pretrained, layers, strict=True):
        short = layer(x, mask, adapters, pooled=True)
        assert short.shape == (3, 1, 384)
        assert torch.allclose(short, layer(x, mask, adapters, pooled=False)[:, :1], atol=1e-5)


def test_only_token_0_of_a_small_block() -> None:
    torch.manual_seed(5)
    block = PreNormBlock(16, heads=4)
    x, mask = tokens(16)
    short = block(x, mask, pooled=True)
    assert short.shape == (3, 1, 16)
    assert torch.allclose(short, block(x, mask, pooled=False)[:, :1], atol=1e-6)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_laws_of_every_backbone(name: str, weights: Weights) -> None:
    family = BACKBONES[name]
    frozen = family.load_frozen(weights, 3)
    modules = trained(name, moved=True)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for m in modules for p in m.parameters())
    assert len(modules) == len({*family.blocks(), *family.layers})
    assert bool(family.layers) == bool(family.projections) != bool(family.blocks())
    x, mask = tokens(family.width)
    x.requires_grad_()
    pooled, fused = family.fuse(frozen, modules, x, mask)
    assert pooled.shape == (3, family.width)
    assert fused.shape == x.shape
    torch.autograd.backward(pooled.square().sum() + fused.square().sum())
    assert all(p.grad is not None for m in modules for p in m.parameters())
    assert all(p.grad is None for p in frozen.parameters())
    # Masked tokens reach nobody.
    other = x.detach().clone()
    other[~mask] = 17.0
    again, _ = family.fuse(frozen, modules, other, mask)
    assert torch.allclose(again, pooled, atol=1e-5)
    seen = x.detach().clone()
    seen[0, 6] = 17.0
    assert not torch.allclose(family.fuse(frozen, modules, seen, mask)[0][0], pooled[0], atol=1e-3)


def test_random_weights_are_the_seeds_own(pretrained: nn.Module) -> None:
    drawn = [state_of(MiniLMFusion.load_frozen("random", seed)) for seed in (3, 3, 4)]
    known = state_of(pretrained)
    matrices = [n for n in known if n.endswith("weight") and "norm" not in n]
    assert len(matrices) == 8
    for name in known:
        assert torch.equal(drawn[0][name], drawn[1][name])
        assert drawn[0][name].shape == known[name].shape
    for name in matrices:
        assert not torch.equal(drawn[0][name], drawn[2][name])
        assert not torch.equal(drawn[0][name], known[name])
        assert float(drawn[0][name].std()) == pytest.approx(0.02, rel=0.02)


def test_pretrained_weights_depend_on_no_seed(pretrained: nn.Module) -> None:
    other = state_of(MiniLMFusion.load_frozen("pretrained", 9))
    assert all(torch.equal(a, other[n]) for n, a in state_of(pretrained).items())


def test_attention_by_hand() -> None:
    q, k, v = torch.randn(3, 1, 2, 4).unbind(0)
    mask = torch.tensor([[True, True]])
    out = attend(q, k, v, mask, heads=2)
    for head in (slice(0, 2), slice(2, 4)):
        weights = (q[0, :, head] @ k[0, :, head].T / 2**0.5).softmax(-1)
        assert torch.allclose(out[0, :, head], weights @ v[0, :, head], atol=1e-6)
    alone = attend(q, k, v, torch.tensor([[True, False]]), heads=2)
    assert torch.allclose(alone[0, 1], v[0, 0], atol=1e-6)


def test_a_layer_that_lacks_a_weight_is_not_read() -> None:
    state = load_file(asset_root("minilm") / "model" / "model.safetensors")
    with pytest.raises(KeyError):
        FrozenLayer().read(state, "encoder.layer.6.")
