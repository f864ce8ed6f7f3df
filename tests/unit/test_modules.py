from __future__ import annotations

import pytest

from hffm_flower.errors import ModuleError
from hffm_flower.modules import Merger, ModularUpdate, ModuleKey, ModuleKind, merge
from tests.support.memory import A, H, module, same


@pytest.mark.parametrize(
    "text", ["", "adapter", "adapter/", "/x", "robot/x", "Adapter/x", "adapter/a/b", "adapter x"]
)
def test_a_text_that_is_no_key_is_refused_with_the_kinds(text: str) -> None:
    with pytest.raises(ModuleError) as caught:
        ModuleKey.parse(text)
    assert repr(text) in str(caught.value)
    assert all(kind in str(caught.value) for kind in ModuleKind)


def test_keys_are_sorted_by_kind_and_name() -> None:
    names = ["head/a", "adapter/b", "prompt/a", "adapter/a"]
    assert [str(k) for k in sorted(map(ModuleKey.parse, names))] == sorted(names)


@pytest.mark.parametrize("mass", [-1.0, float("nan"), float("inf"), -float("inf")])
def test_a_mass_that_is_no_mass_is_refused(mass: float) -> None:
    with pytest.raises(ModuleError, match=f"adapter/a={mass}"):
        ModularUpdate.of({A: module(1)}, mass)


def test_state_and_mass_must_name_the_same_modules() -> None:
    with pytest.raises(ModuleError, match="different modules: adapter/a, head/h"):
        ModularUpdate({A: module(1)}, {H: 1.0})


def test_a_mean_is_weighted_by_mass() -> None:
    merged = merge([ModularUpdate.of({A: module(1, 0)}, 1), ModularUpdate.of({A: module(5, 4)}, 3)])
    assert merged.state[A]["w"].tolist() == [4.0, 3.0]
    assert merged.mass == {A: 4.0}


def test_a_merger_can_be_read_and_added_to_again() -> None:
    merger = Merger()
    merger.add(ModularUpdate.of({A: module(2)}, 1))
    first = merger.result()
    merger.add(ModularUpdate.of({A: module(4)}, 1))
    assert same(first.state[A], module(2))
    assert same(merger.result().state[A], module(3))


def test_only_and_scaled() -> None:
    update = ModularUpdate({A: module(1), H: module(2)}, {A: 3.0, H: 4.0})
    assert update.only([H]).mass == {H: 4.0}
    assert update.scaled(0.5).mass == {A: 1.5, H: 2.0}
    assert update.scaled(0.5).state is update.state
    assert merge([update.scaled(0)]).state == {}
    with pytest.raises(ModuleError, match="not negative"):
        update.scaled(-1)


@pytest.mark.parametrize("masses", [(1e300, 1.0, 1e-300), (1e-300, 1.0, 1e300), (1e-300,) * 3])
def test_masses_may_be_far_apart_and_far_from_one(masses: tuple[float, ...]) -> None:
    values = (2.0, 3.0, 4.0)
    updates = [ModularUpdate.of({A: module(v)}, n) for v, n in zip(values, masses, strict=True)]
    merged = merge(updates)
    expected = sum(v * (n / max(masses)) for v, n in zip(values, masses, strict=True))
    expected /= sum(n / max(masses) for n in masses)
    assert merged.state[A]["w"].tolist() == pytest.approx([expected], rel=1e-6)
    assert merged.mass[A] == pytest.approx(sum(masses))


def test_large_masses_keep_large_values_finite() -> None:
    merged = merge([ModularUpdate.of({A: module(1e33)}, 1e6) for _ in range(3)])
    assert merged.state[A]["w"].tolist() == pytest.approx([1e33], rel=1e-6)
