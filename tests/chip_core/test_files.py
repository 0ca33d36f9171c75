from __future__ import annotations

from pathlib import Path

import pytest

from chip_core.files import Spool, expanded, read_records, write_atomically, write_json


def test_a_record_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "a.jsonl")
    spool.append({"step": 1})
    spool.append({"step": 2})
    spool.close()
    file = tmp_path / "a.jsonl"
    file.write_bytes(file.read_bytes()[:-4])
    assert read_records(file) == [{"step": 1}]


def test_a_record_broken_in_the_middle_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": \n{"a": 3}\n{"a": 4}\n')
    with pytest.raises(ValueError, match="Expecting value"):
        read_records(tmp_path / "a.jsonl")


def test_no_file_holds_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "none.jsonl") == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"figure": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"figure": float("nan")})
    assert file.read_text() == '{\n "figure": 1\n}\n'
    write_atomically(file, "new")
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_users_home_is_put_in_where_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/a") == Path("/home/me/a")
    assert expanded("~nobody-here/a") == Path("~nobody-here/a")
    assert expanded("./~a") == Path("~a")
