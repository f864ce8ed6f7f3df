"""Entries of a large JSON file, read one by one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hffm_flower.data.prepare import json_entries
from hffm_flower.data.prepare.json_entries import entries
from hffm_flower.errors import ConfigError

CONTENT = [{"a": 1, "t": 'x "}]{[,: \\ é\n'}, {}, {"b": [{"c": None}, "]"], "d": {"e": {}}}]


@pytest.mark.parametrize("chunk", [1, 2, 7, 2**20])
@pytest.mark.parametrize("indent", [None, 2])
def test_entries_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
) -> None:
    monkeypatch.setattr(json_entries, "CHUNK", chunk)
    path = tmp_path / "x.json"
    for content in ([], {}, CONTENT, {f"q{i} ": c for i, c in enumerate(CONTENT)}):
        path.write_text(json.dumps(content, indent=indent), encoding="utf-8")
        want = content if isinstance(content, dict) else {str(i): c for i, c in enumerate(content)}
        assert dict(entries(path)) == want


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'the end' where one of '{[' must be"),
        ("3", "'3' where one of"),
        ('[{"a": 1}', "(entry '0'): 'the end' where one of ',]'"),
        ('[{"a": 1},', "(entry '1'): 'the end' where '{'"),
        ('{"q": {"a": 1}, "r": 3}', "(entry 'r'): '3' where '{'"),
        ('{"q": {"a": 1', "(entry 'q'): "),
        ("[{a: 1}]", "(entry '0'): Expecting property name"),
        ('{"q" {}}', "(entry 'q'): '{' where one of ':'"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        list(entries(path))
    assert why in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        list(entries(tmp_path / "x.json"))
    (tmp_path / "x.json").write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(ConfigError, match="codec can't decode"):
        list(entries(tmp_path / "x.json"))
