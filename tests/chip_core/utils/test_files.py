"""What was written survives a crash; what is private is never readable by others."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

import pytest

from chip_core.utils.errors import DiskFullError, UserError, reset_warnings
from chip_core.utils.files import (
    JsonlWriter,
    append_record,
    convert_disk_full,
    erase_line,
    expand_path,
    is_disk_full,
    make_private,
    read_checksummed,
    read_lines,
    read_records,
    write_atomically,
    write_checksummed,
    write_json,
    write_private,
    write_private_json,
)


def test_a_record_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    spool = JsonlWriter(tmp_path / "a.jsonl")
    spool.append({"step": 1})
    spool.append({"step": 2})
    spool.close()
    file = tmp_path / "a.jsonl"
    file.write_bytes(file.read_bytes()[:-4])
    assert read_records(file) == [{"step": 1}]


@pytest.mark.parametrize("bad", [b'{"a": ', b"[]", b"3", b"\0\0\0", b'{"a": "\xff"}'])
def test_a_record_broken_in_the_middle_is_left_out_and_told(
    bad: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reset_warnings()
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n' + bad + b'\n{"a": 3}\n')
    assert read_records(file) == [{"a": 1}, {"a": 3}]
    assert read_records(file) == [{"a": 1}, {"a": 3}]
    assert caplog.messages == [f"{file}: line 2 has changed since it was written: it is left out"]


def test_one_digit_of_a_record_is_not_taken_for_another(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    append_record(file, {"chair": 6.15})
    append_record(file, {"chair": 2.5})
    assert read_records(file) == [{"chair": 6.15}, {"chair": 2.5}]  # the checksum is no key of it
    file.write_bytes(file.read_bytes().replace(b"6.15", b"2.26"))
    assert read_records(file) == [{"chair": 2.5}]


def test_every_changed_byte_of_a_sealed_file_is_seen_or_changes_nothing(tmp_path: Path) -> None:
    file, value = tmp_path / "a.json", {"chair": 6.15, "of": [1, 2], "name": "é"}
    write_checksummed(file, value)
    whole = file.read_bytes()
    assert read_checksummed(file) == value
    for place in range(len(whole)):
        for other in (0x00, 0x20, 0x31, 0xFF):
            file.write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
            try:
                found = read_checksummed(file)
            except ValueError:
                continue
            # What is left then is a checksum that cannot be told for one.
            assert {key: found[key] for key in value} == value, (place, other)


def test_a_file_without_a_checksum_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"chair": 6.15}')
    assert read_checksummed(tmp_path / "a.json") == {"chair": 6.15}
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match="not a JSON object"):
        read_checksummed(tmp_path / "a.json")


def test_what_stands_in_a_files_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    (tmp_path / "studies").write_text("a file")
    with pytest.raises(UserError, match=r"report\.html: is a folder, but a file must be"):
        write_json(tmp_path / "report.html", {})
    with pytest.raises(UserError, match=r"studies: is not a folder, but plan\.json must be"):
        write_json(tmp_path / "studies" / "small" / "plan.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "studies"]


def test_a_blanked_line_is_passed_over_and_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    for number in (1, 2, 3):
        append_record(file, {"a": number})
    second = read_lines(file)[1]
    erase_line(file, second)
    assert read_records(file) == [{"a": 1}, {"a": 3}]
    erase_line(file, second)  # by another driver that read it before: nothing of it is there
    append_record(file, {"a": 4})
    assert [(line.number, line.record) for line in read_lines(file)][-1] == (4, {"a": 4})


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
    assert expand_path("~/a") == Path("/home/me/a")
    assert expand_path("~nobody-here/a") == Path("~nobody-here/a")
    assert expand_path("./~a") == Path("~a")


def test_a_full_disk_is_told_in_one_line_whatever_a_library_raises(tmp_path: Path) -> None:
    said = f"no space for the model: the disk of {tmp_path} is full: free some space"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for error in (full, ValueError("I/O error: No space left on device (os error 28)")):
        with (
            pytest.raises(DiskFullError, match=re.escape(said)),
            convert_disk_full("the model", tmp_path),
        ):
            raise error


def test_an_error_without_a_reason_is_a_full_disks_where_nothing_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what torch.save says of a full disk: nothing of the disk
    error = RuntimeError("unexpected pos 576 vs 534")
    with (
        pytest.raises(RuntimeError, match="unexpected pos"),
        convert_disk_full("the model", tmp_path),
    ):
        raise error
    monkeypatch.setattr("chip_core.utils.files._free_bytes", lambda folder: 0)
    with pytest.raises(DiskFullError), convert_disk_full("the model", tmp_path / "not there yet"):
        raise error


def test_what_led_to_an_error_may_be_a_full_disk() -> None:
    try:
        try:
            raise OSError(errno.EDQUOT, "quota")
        except OSError as cause:
            raise ValueError("cannot write") from cause
    except ValueError as error:
        assert is_disk_full(error)
    assert not is_disk_full(OSError(errno.EACCES, os.strerror(errno.EACCES)))


def get_mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def _permissive_umask() -> object:
    before = os.umask(0)  # nothing is taken away by chance
    yield
    os.umask(before)


def test_a_new_folder_is_its_owner_s(tmp_path: Path) -> None:
    make_private(tmp_path / "a" / "b")
    assert get_mode(tmp_path / "a" / "b") == 0o700


def test_a_folder_that_is_there_is_let_be(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o755)
    make_private(tmp_path / "a")
    assert get_mode(tmp_path / "a") == 0o755


def test_a_private_file_and_its_new_folder_are_closed(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    write_private(folder / "token", "secret")
    assert (get_mode(folder), get_mode(folder / "token")) == (0o700, 0o600)
    assert (folder / "token").read_text() == "secret"
    write_private_json(folder / "token", {"a": 1})
    assert (get_mode(folder / "token"), list(folder.iterdir())) == (0o600, [folder / "token"])


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "token").symlink_to(tmp_path / "mine")
    (folder / f".token.{os.getpid()}.partial").symlink_to(tmp_path / "mine")
    write_private(folder / "token", "secret")
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (folder / "token").is_symlink()
