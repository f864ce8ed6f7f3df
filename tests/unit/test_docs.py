"""docs/configuration.md lists every setting, with its type and default, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hffm_flower.config import RunConfig, keys

DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"^\| `(?P<key>[a-z0-9.-]+)` \| (?P<type>\w+) \| `(?P<default>.*?)` \| (?P<text>.+) \|$")  # fmt: skip  # noqa: E501


def rows() -> list[dict[str, str]]:
    lines = (DOCS / "configuration.md").read_text(encoding="utf-8").splitlines()
    return [match.groupdict() for line in lines if (match := ROW.match(line))]


def test_every_setting_is_documented_once_in_order() -> None:
    assert tuple(row["key"] for row in rows()) == keys()


def test_documented_types_and_defaults_are_the_real_ones() -> None:
    flat = RunConfig().to_flwr()
    lists = dict.fromkeys(
        ("data.tasks", "model.encoders", "model.lora-targets", "model.tune", "model.tune-targets",
         "model.prompts"), "words",
    ) | {"tree.memory-mib": "numbers", "model.lora-ranks": "numbers"}  # fmt: skip
    want = {
        key: (lists.get(key, type(value).__name__), json.dumps(value))
        for key, value in flat.items()
    }
    assert {row["key"]: (row["type"], row["default"]) for row in rows()} == want
