"""Rows of answers from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from chip_core.evaluation.reading import read_json, read_objects
from chip_core.utils.errors import UserError


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}, {"a": 2}]',
        '{"a": 1}\n{"a": 2}\n',
        '\ufeff\n{"a": 1}\n\n{"a": 2}',
        '[\n{"a": 1},\n{"a": 2}\n]\n',
    ],
)
def test_lists_and_lines_are_the_same(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows").write_text(text, encoding="utf-8")
    assert read_objects(tmp_path / "rows") == [{"a": 1}, {"a": 2}]


def test_no_rows_and_one_object(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    for text, rows in (("", []), ("\n", []), ("[]", []), ('{\n"a":\n1}', [{"a": 1}])):
        file.write_text(text)
        assert read_objects(file) == rows


def test_a_line_end_within_text_ends_no_row(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"a": "x\u2028y"}\n{"a": "z"}\n', encoding="utf-8")
    assert [row["a"] for row in read_objects(tmp_path / "rows")] == ["x\u2028y", "z"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 1}\n{"a": \n', "rows: line 2: not JSON"),
        ("no rows", "rows: line 1: not JSON"),
        ('[{"a": 1}, 2]', "rows: row 2 is a number, not an object"),
        ('["a"]', "row 1 is text"),
        ("null", "row 1 is null"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "rows").write_text(text)
    with pytest.raises(UserError, match=why) as raised:
        read_objects(tmp_path / "rows")
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"[\xff]")
    for name, why in ((".", "is a folder"), ("none", "no such file"), ("bytes", "not UTF-8")):
        for read in (read_objects, read_json):
            with pytest.raises(UserError, match=why):
                read(tmp_path / name)
