from __future__ import annotations

import inspect

import pytest

from hffm_flower import errors
from hffm_flower.errors import ConfigError, HffmError, OutputError, one_of


def test_the_tree_is_the_one_drawn_in_the_docstring() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass)
               if c.__module__ == errors.__name__]  # fmt: skip
    assert all(issubclass(c, HffmError) for c in classes)
    drawn = {line.strip(" |`-").split()[0] for line in (errors.__doc__ or "").splitlines()
             if line.startswith(("|", "`", "HffmError"))}  # fmt: skip
    assert drawn == {c.__name__ for c in classes}
    assert OutputError.__base__ is ConfigError
    assert all(c.__base__ is HffmError for c in classes if c not in (HffmError, OutputError))


def test_an_allowed_value_is_returned() -> None:
    assert one_of("method", "star", ["local", "star"]) == "star"


def test_a_near_miss_is_named_with_all_that_is_allowed() -> None:
    with pytest.raises(ConfigError) as caught:
        one_of("method", "stra", iter(["local", "star"]), key="method")
    assert str(caught.value) == (
        "unknown method 'stra' (did you mean 'star'?); allowed: local, star"
    )
    assert caught.value.key == "method"


def test_a_value_far_from_all_has_no_hint() -> None:
    with pytest.raises(ConfigError) as caught:
        one_of("method", "xyz", ["local", "star"])
    assert str(caught.value) == "unknown method 'xyz'; allowed: local, star"
    assert caught.value.key == ""
