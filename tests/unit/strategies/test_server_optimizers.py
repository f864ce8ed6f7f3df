from __future__ import annotations

import math

import numpy as np
import pytest

from hffm_flower.errors import ConfigError
from hffm_flower.modules import ModuleKind
from strategies.server_optimizers import Adam, Mean, Momentum, OptimizerPolicy
from tests.support.memory import A, H, P, module, same

CURRENT, MERGED = module(1, -2), module(3, -1)


def values(state: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> list[float]:
    assert state["w"].dtype == np.float32
    return [float(v) for v in state["w"]]


def test_mean_is_what_was_merged() -> None:
    assert same(Mean().step(CURRENT, MERGED), MERGED)


def test_momentum_by_hand() -> None:
    """v1 = d1; x1 = x0 + r v1; v2 = b v1 + d2; x2 = x1 + r v2."""
    momentum = Momentum(0.5, 0.9)
    one = momentum.step(module(1), module(3))
    assert values(one) == pytest.approx([1 + 0.5 * 2])
    two = momentum.step(one, module(1))
    assert values(two) == pytest.approx([2 + 0.5 * (0.9 * 2 + (1 - 2))])
    assert values(Momentum().step(module(1), module(3))) == pytest.approx([3])


def test_adam_by_hand() -> None:
    """m = 0.9 m + 0.1 d; v = 0.99 v + 0.01 d^2; x + r m / (sqrt v + 1e-3); no bias correction."""
    adam = Adam(0.1)
    one = adam.step(module(1), module(3))
    m, v = 0.1 * 2, 0.01 * 4
    x = 1 + 0.1 * m / (math.sqrt(v) + 1e-3)
    assert values(one) == pytest.approx([x], rel=1e-6)
    two = adam.step(one, module(0))
    d = 0 - x
    m, v = 0.9 * m + 0.1 * d, 0.99 * v + 0.01 * d * d
    assert values(two) == pytest.approx([x + 0.1 * m / (math.sqrt(v) + 1e-3)], rel=1e-5)


@pytest.mark.parametrize("policy", ["*=momentum", "*=adam", "*=adam:0.5", "*=mean", ""])
def test_inputs_are_left_alone_and_no_change_is_no_step(policy: str) -> None:
    optimizer = OptimizerPolicy(policy)
    current, merged = module(1, -2), module(1, -2)
    assert same(optimizer.step(A, current, merged), current)
    optimizer.step(A, current, module(5, 5))
    assert same(current, module(1, -2))
    assert same(merged, module(1, -2))


def test_a_policy_chooses_by_kind_and_the_first_match_wins() -> None:
    policy = OptimizerPolicy("head=momentum:0.5:0 *pt*=momentum:0.25:0 head=adam")
    assert values(policy.step(H, module(0), module(8))) == [4.0]
    assert values(policy.step(A, module(0), module(8))) == [2.0]  # adapter
    assert values(policy.step(P, module(0), module(8))) == [2.0]  # prompt
    assert values(OptimizerPolicy("head=adam").step(A, module(0), module(8))) == [8.0]


def test_every_module_has_moments_of_its_own() -> None:
    policy = OptimizerPolicy("*=momentum:1:0.5")
    policy.step(A, module(0), module(8))
    assert values(policy.step(H, module(0), module(2))) == [2.0]
    assert values(policy.step(A, module(0), module(2))) == [6.0]
    assert values(OptimizerPolicy("*=momentum:1:0.5").step(A, module(0), module(2))) == [2.0]


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("head", "'head' is not of the form kind=optimizer"),
        ("=mean", "'=mean' is not of the form"),
        ("robot=mean", f"kind of: {', '.join(ModuleKind)}"),
        ("head/*=mean", "'head/\\*=mean' is not of the form"),
        ("head=sgd", "unknown server optimizer 'sgd'"),
        ("head=adm", "did you mean 'adam'"),
        ("head=adam:fast", "'adam:fast' is not valid; allowed: mean, momentum"),
        ("head=adam:0.1:0.2", "'adam:0.1:0.2' is not valid"),
        ("head=mean:1", "'mean:1' is not valid"),
        ("head=adam:0", "LR > 0"),
        ("head=adam:-1", "LR > 0"),
        ("head=adam:nan", "LR > 0"),
        ("head=adam:inf", "LR > 0"),
        ("head=momentum:inf", "LR > 0"),
        ("head=momentum:1:1", "0 <= BETA < 1"),
        ("head=momentum:1:-0.1", "0 <= BETA < 1"),
        ("*=mean head=momentum:0", "LR > 0"),
    ],
)
def test_a_policy_that_is_wrong_is_refused_before_round_1(policy: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        OptimizerPolicy(policy)
    assert caught.value.key == "server.optimizer"
