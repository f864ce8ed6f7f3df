"""What a run's check finds wrong in its tasks."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest

from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError
from hffm_flower.session.preflight import check
from hffm_flower.tasks import TASKS


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"head": "oracle"}, r"unknown head 'oracle'; allowed: classification, box"),
        ({"head": "classification", "answers": ()}, "has head 'classification' and no answers"),
    ],
)
def test_a_task_that_no_head_answers_is_refused(
    changes: dict[str, Any], why: str, tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny.data.tasks[0]
    odd = dataclasses.replace(TASKS[task], **changes)
    monkeypatch.setitem(cast("dict[str, object]", TASKS), task, odd)
    with pytest.raises(ConfigError, match=why) as caught:
        check(tiny)
    assert caught.value.key == "data.tasks"
