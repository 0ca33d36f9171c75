"""What is private is never readable by others."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from chip_core.utils.private import make_private, write_private, write_private_json


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def _open_mask() -> object:
    before = os.umask(0)  # nothing is taken away by chance
    yield
    os.umask(before)


def test_a_new_folder_is_its_owner_s(tmp_path: Path) -> None:
    make_private(tmp_path / "a" / "b")
    assert mode(tmp_path / "a" / "b") == 0o700


def test_a_folder_that_is_there_is_let_be(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o755)
    make_private(tmp_path / "a")
    assert mode(tmp_path / "a") == 0o755


def test_a_private_file_and_its_new_folder_are_closed(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    write_private(folder / "token", "secret")
    assert (mode(folder), mode(folder / "token")) == (0o700, 0o600)
    assert (folder / "token").read_text() == "secret"
    write_private_json(folder / "token", {"a": 1})
    assert (mode(folder / "token"), list(folder.iterdir())) == (0o600, [folder / "token"])


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "token").symlink_to(tmp_path / "mine")
    (folder / f".token.{os.getpid()}.partial").symlink_to(tmp_path / "mine")
    write_private(folder / "token", "secret")
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (folder / "token").is_symlink()
