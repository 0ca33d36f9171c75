from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from chip_core.errors import DiskFullError
from chip_core.files import (
    Spool,
    expanded,
    is_full,
    read_records,
    room_for,
    write_atomically,
    write_json,
)


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


def test_a_full_disk_is_told_in_one_line_whatever_a_library_raises(tmp_path: Path) -> None:
    said = f"no room for the model: the disk of {tmp_path} is full: free some space"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for error in (full, ValueError("I/O error: No space left on device (os error 28)")):
        with pytest.raises(DiskFullError, match=re.escape(said)), room_for("the model", tmp_path):
            raise error


def test_an_error_without_a_reason_is_a_full_disks_where_nothing_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what torch.save says of a full disk: nothing of the disk
    error = RuntimeError("unexpected pos 576 vs 534")
    with pytest.raises(RuntimeError, match="unexpected pos"), room_for("the model", tmp_path):
        raise error
    monkeypatch.setattr("chip_core.files._free", lambda folder: 0)
    with pytest.raises(DiskFullError), room_for("the model", tmp_path / "not there yet"):
        raise error


def test_what_led_to_an_error_may_be_a_full_disk() -> None:
    try:
        try:
            raise OSError(errno.EDQUOT, "quota")
        except OSError as cause:
            raise ValueError("cannot write") from cause
    except ValueError as error:
        assert is_full(error)
    assert not is_full(OSError(errno.EACCES, os.strerror(errno.EACCES)))
